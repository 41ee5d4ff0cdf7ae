"""Images, labels and metrics that a Python program already holds.

What is iterated is written once to an `.npy` file beside the runs, so that every stage, a resumed run
and a build kit read the same images, and any number of them fits in memory.
"""

from __future__ import annotations

import hashlib
import inspect
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

import numpy as np
from numpy.typing import NDArray

from reptrt.engines.artifacts import replace_when_done
from reptrt.models.inputs import IMAGES, Feed
from reptrt.models.spec import Preprocess
from reptrt.pipeline.data.array_images import ArrayImages, read_array_header
from reptrt.pipeline.data.batches import Batch, ImageSet, LazyBatches
from reptrt.pipeline.data.masks import VOID
from reptrt.pipeline.data.preprocess import DataError
from reptrt.pipeline.data.stored_feeds import store_feeds

if TYPE_CHECKING:
    import torch

ImageSource: TypeAlias = "str | Path | NDArray[Any] | torch.Tensor | Iterable[Any]"
"""A folder or file, an array or tensor, a DataLoader, or any iterable of batches."""

Predict = Callable[[Any], Any]
"""Images `[n, 3, h, w]` -> the network's output, or its outputs by name where it has several."""

Metric = Callable[[Predict], float]
"""Accuracy of a `predict` function in a unit of the user's own; more is better."""

_LABEL_KEYS = ("labels", "label")
_BATCH_KEYS = ("images", "image", "pixel_values", "input", "inputs")


@dataclass(frozen=True)
class MetricFunction:
    """A user's own measure of accuracy.

    Attributes:
        name: what reports call it.
        function: measures a `predict`; more is better.
    """

    name: str
    function: Metric

    @cached_property
    def fingerprint(self) -> str:
        """Hex digest of the function's source, or of its name where there is no source."""
        try:
            text = inspect.getsource(self.function)
        except (OSError, TypeError):
            text = repr(self.function)
        return hashlib.sha256(f"{self.name}\0{text}".encode()).hexdigest()


@dataclass(frozen=True)
class LabelledArrays:
    """Images in an array file, and the class that each shows.

    Attributes:
        images: in the order of `labels`.
        labels: `[n]` int64, class indices of the model.
    """

    images: ImageSet
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def fingerprint(self) -> str:
        """Hex digest of the images and their labels."""
        return hashlib.sha256(self.images.fingerprint.encode() + self.labels.tobytes()).hexdigest()

    def batches(self, batch_size: int) -> LazyBatches[Batch]:
        """Return batches in order; an image stands for itself, so nothing is said of its canvas."""
        arrays = self.images.batches(batch_size)

        def read() -> Iterator[Batch]:
            for number, images in enumerate(arrays):
                first = number * batch_size
                indices = np.arange(first, first + len(images), dtype=np.int64)
                yield Batch(images, indices, (), ())

        return LazyBatches(len(arrays), read)


@dataclass(frozen=True)
class MaskedArrays:
    """Images in an array file, and the class of every pixel.

    Attributes:
        images: in the order of `masks`.
        masks: `[n, h, w]` uint8, of the network's input size; `VOID` counts for nothing.
    """

    images: ImageSet
    masks: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.masks)

    @cached_property
    def fingerprint(self) -> str:
        """Hex digest of the images and their masks."""
        return hashlib.sha256(self.images.fingerprint.encode() + self.masks.tobytes()).hexdigest()

    def classes_of(self, index: int) -> NDArray[np.uint8]:
        """Classes `[h, w]` of an image."""
        found: NDArray[np.uint8] = self.masks[index]
        return found

    def batches(self, batch_size: int) -> LazyBatches[Batch]:
        """Return batches in order, as `LabelledArrays` does."""
        numbers = np.arange(len(self), dtype=np.int64)
        return LabelledArrays(self.images, numbers).batches(batch_size)


def store_images(images: ImageSource, folder: Path, limit: int | None = None) -> Path:
    """Path of `images`: their own, or of an `.npy` file in `folder` that now holds them.

    Args:
        images: a path, or batches: arrays or tensors `[n, 3, h, w]` (normalized, as the network takes
            them) or uint8 `[n, h, w, 3]` (RGB), tuples whose first member is such a batch, or dicts
            with one under `images`, `image`, `pixel_values`, `input` or `inputs`. One array or tensor
            is one batch. Dicts with other keys, or more, are named feeds (`stored_feeds`).
        folder: where the file goes; its name is the digest of its content.
        limit: most images that are read; None reads all.

    Raises:
        DataError: no images, or something else than images.
    """
    if isinstance(images, (str, Path)):
        return Path(images)
    if not _is_one_batch(images) and isinstance(images, Iterable):
        batches = iter(images)
        first = next(batches, None)
        images = [] if first is None else chain([first], batches)
        if isinstance(first, Mapping) and _is_feed(first):
            return store_feeds(map(_as_feed, images), folder, limit)
    return _store((batch for batch, _ in _read_batches(images)), folder, limit)


def _is_feed(batch: Mapping[str, Any]) -> bool:
    """Whether a batch names inputs, and not just its images beside their labels."""
    named = [key for key in batch if key not in _LABEL_KEYS]
    return len(named) != 1 or named[0] not in _BATCH_KEYS


def _as_feed(batch: Any) -> dict[str, NDArray[Any]]:
    if not isinstance(batch, Mapping):
        raise DataError(
            f"images: a {type(batch).__name__} behind mappings of input names to arrays"
        )
    return {str(k): _as_array(value) for k, value in batch.items() if k not in _LABEL_KEYS}


def store_labelled(
    loader: Iterable[Any], folder: Path, preprocess: Preprocess, num_classes: int
) -> LabelledArrays:
    """The images and labels of a loader that yields `(images, labels)`.

    Args:
        loader: batches as in `store_images`, each with labels `[n]` behind it.
        folder: where the images go.
        preprocess: of the network, for uint8 images.
        num_classes: that the network tells apart.

    Raises:
        DataError: no labels, labels that the network does not have, or see `store_images`.
    """
    labels: list[NDArray[np.int64]] = []

    def images() -> Iterator[NDArray[Any]]:
        for batch, behind in _read_batches(loader):
            found = _as_labels(behind) if behind is not None else ()
            if len(found) != len(batch):
                raise DataError(
                    "evaluate: a labelled loader yields (images, labels) with one label for each image"
                )
            labels.append(np.asarray(found))
            yield batch

    path = _store(images(), folder, None)
    every = np.concatenate(labels)
    if every.min() < 0 or every.max() >= num_classes:
        raise DataError(
            f"evaluate: labels {every.min()} to {every.max()}, and the network tells "
            f"{num_classes} classes apart, 0 to {num_classes - 1}"
        )
    array = read_array_header(path, preprocess.image_size)
    return LabelledArrays(ArrayImages(array, range(array.shape[0]), preprocess), every)


def store_masked(
    loader: Iterable[Any], folder: Path, preprocess: Preprocess, num_classes: int
) -> MaskedArrays:
    """The images and masks of a loader that yields `(images, masks)`.

    Args:
        loader: batches as in `store_images`, each with integer masks `[n, h, w]` of the network's
            input size behind it.
        folder: where the images go.
        preprocess: of the network, for uint8 images.
        num_classes: that the network tells apart; 0 where it does not tell.

    Raises:
        DataError: no masks, masks that do not fit, or see `store_images`.
    """
    masks: list[NDArray[np.uint8]] = []

    def images() -> Iterator[NDArray[Any]]:
        for batch, behind in _read_batches(loader):
            masks.append(_as_masks(behind, (len(batch), *preprocess.image_size), num_classes))
            yield batch

    path = _store(images(), folder, None)
    array = read_array_header(path, preprocess.image_size, preprocess.num_channels)
    stored = ArrayImages(array, range(array.shape[0]), preprocess)
    return MaskedArrays(stored, np.concatenate(masks))


def _as_masks(value: Any, shape: tuple[int, ...], num_classes: int) -> NDArray[np.uint8]:
    found = np.zeros(()) if value is None else _as_array(value)
    if found.shape != shape or not np.issubdtype(found.dtype, np.integer):
        raise DataError(
            f"evaluate: a loader for segmentation yields (images, masks); the masks have to be integers"
            f" {list(shape)}, not {found.dtype} {list(found.shape)}"
        )
    wrong = (found < 0) | ((found >= (num_classes or VOID)) & (found != VOID))
    if wrong.any():
        raise DataError(
            f"evaluate: masks hold class {found[wrong][0]}, and the network tells"
            f" {num_classes or VOID} classes apart; {VOID} is void"
        )
    return found.astype(np.uint8)


def _read_batches(source: Any) -> Iterator[tuple[NDArray[Any], Any]]:
    """Images of each batch, and what stands behind them, or None."""
    if _is_one_batch(source):
        source = [source]
    if not isinstance(source, Iterable):
        raise DataError(
            f"images: a {type(source).__name__} is no folder, array, tensor, DataLoader or other "
            "iterable of batches"
        )
    for batch in source:
        images, labels = batch, None
        if isinstance(batch, Mapping):
            images, labels = _from_mapping(batch)
        elif isinstance(batch, (tuple, list)):
            images, labels = batch[0], batch[1] if len(batch) > 1 else None
        yield _as_images(images), labels


def _from_mapping(batch: Mapping[str, Any]) -> tuple[Any, Any]:
    for key in _BATCH_KEYS:
        if key in batch:
            return batch[key], batch.get("labels", batch.get("label"))
    raise DataError(
        f"images: a batch with the keys {', '.join(map(str, batch))}; one of "
        f"{', '.join(_BATCH_KEYS)} has to hold the images"
    )


def _as_images(value: Any) -> NDArray[Any]:
    array = _as_array(value)
    if array.dtype != np.uint8:
        array = array.astype(np.float32)
    if array.ndim != 4:
        raise DataError(
            f"images: a batch of shape {list(array.shape)}; it has to be [n, 3, h, w] (normalized) or "
            "uint8 [n, h, w, 3] (RGB)"
        )
    return array


def _as_labels(value: Any) -> NDArray[np.int64]:
    array = _as_array(value)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise DataError(
            f"evaluate: labels of shape {list(array.shape)} and type {array.dtype}; they have to be "
            "class indices [n]"
        )
    return array.astype(np.int64)


def _as_array(value: Any) -> NDArray[Any]:
    if _is_tensor(value):
        return value.detach().cpu().numpy()
    try:
        return np.asarray(value)
    except ValueError as error:
        raise DataError(f"images: a batch that is no array: {error}") from None


def _is_one_batch(value: object) -> bool:
    return isinstance(value, np.ndarray) or _is_tensor(value)


def _is_tensor(value: object) -> TypeGuard[torch.Tensor]:
    """Of PyTorch, which is imported by whoever made one: workers that read images start without."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _store(batches: Iterator[NDArray[Any]], folder: Path, limit: int | None) -> Path:
    """Write `[n, ...]` batches one behind the other into a file that is named after its content."""
    first = next(batches, None)
    if first is None or len(first) == 0:
        raise DataError("images: there are none")
    folder.mkdir(parents=True, exist_ok=True)
    layout, count, digest = first.shape[1:], 0, hashlib.sha256()
    with tempfile.TemporaryFile(dir=folder) as raw:
        for batch in chain([first], batches):
            if batch.shape[1:] != layout or batch.dtype != first.dtype:
                raise DataError(
                    f"images: a batch {list(batch.shape)} {batch.dtype} behind others "
                    f"{['n', *layout]} {first.dtype}"
                )
            content = np.ascontiguousarray(batch if limit is None else batch[: limit - count])
            raw.write(content.tobytes())
            digest.update(content.tobytes())
            count += len(content)
            if count == limit:
                break
        digest.update(repr((count, *layout, str(first.dtype))).encode())
        path = folder / f"images-{digest.hexdigest()[:16]}.npy"
        if not path.exists():
            with replace_when_done(path) as temporary, temporary.open("wb") as stream:
                described = np.lib.format.dtype_to_descr(first.dtype)
                shape = (count, *layout)
                header = {"descr": described, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(stream, header)
                raw.seek(0)
                shutil.copyfileobj(raw, stream)
    return path


def as_predict(infer: Callable[[Feed], Mapping[str, NDArray[Any]]]) -> Predict:
    """`predict(images)` for a user's metric: tensors in give tensors out, arrays give arrays.

    Networks that read something else than an image are given a mapping, as `predict({"ids": ids})`.

    Args:
        infer: values of the inputs by name -> outputs by name.
    """

    def predict(images: Any) -> Any:
        values = list(images.values()) if isinstance(images, Mapping) else [images]
        wants_tensors = _is_tensor(values[0])
        if isinstance(images, Mapping):
            outputs = infer({str(name): _as_array(value) for name, value in images.items()})
        else:
            outputs = infer({IMAGES: _as_images(images)})
        found: dict[str, Any] = dict(outputs)
        if wants_tensors:
            import torch

            found = {name: torch.from_numpy(value) for name, value in outputs.items()}
        return next(iter(found.values())) if len(found) == 1 else found

    return predict
