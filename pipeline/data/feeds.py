"""Samples by the names of a network's inputs: what calibration, validation and kits run on.

Pictures feed the input that takes images. Networks that read more, or something else, are given named
feeds: a folder of `.npz` files, one sample or batch each, whose keys are input names. Polygraphy's
`--load-inputs` JSON and `--data-loader-script` become such a folder first (`stored_feeds`).
"""

from __future__ import annotations

import hashlib
import logging
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reptrt.engines.foreign.border import reading, require_file
from reptrt.engines.foreign.limits import MAX_FEED_BYTES
from reptrt.engines.foreign.text import one_line
from reptrt.models.inputs import Feed, NetworkInput
from reptrt.pipeline.data.batches import EVERY, Draw, ImageSet, LazyBatches, num_batches
from reptrt.pipeline.data.image_folder import find_images, fingerprint_files
from reptrt.pipeline.data.preprocess import DataError

logger = logging.getLogger(__name__)

Array = NDArray[Any]
FEED_SUFFIX = ".npz"
_Row = tuple[int, int]
"""Number of a file, and of a sample in it."""


class FeedSet(ABC):
    """Unlabelled samples.

    Attributes:
        inputs: what they feed.
    """

    inputs: tuple[NetworkInput, ...]

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Hex digest of the samples and their order, wherever they are stored."""

    @abstractmethod
    def __len__(self) -> int:
        """Count the samples."""

    @abstractmethod
    def name_of(self, index: int) -> str:
        """How messages name a sample."""

    @abstractmethod
    def sizes(self, batch_size: int) -> list[int]:
        """Samples in each batch of `feeds`, `batch_size` at most."""

    @abstractmethod
    def feeds(self, batch_size: int) -> LazyBatches[Feed]:
        """Return batches by input name; samples that cannot be in one batch are in different ones."""


class PictureFeeds(FeedSet):
    """Pictures for the input that takes images; where a network reads more, its other inputs are 1.

    Args:
        images: prepared for the network.
        inputs: what it reads.

    Raises:
        DataError: none of `inputs` takes images.
    """

    def __init__(self, images: ImageSet, inputs: Sequence[NetworkInput]) -> None:
        self._images, self.inputs = images, tuple(inputs)
        self._picture = require_picture(inputs)
        others = [one.name for one in inputs if one is not self._picture]
        if others:
            logger.warning(
                "pictures feed %r alone; %s: 1 everywhere: if that is not what the network sees, give"
                " `data` with named feeds (a folder of .npz whose keys are input names)",
                self._picture.name, ", ".join(map(repr, others)),
            )  # fmt: skip

    @property
    def fingerprint(self) -> str:
        """See `FeedSet`."""
        return self._images.fingerprint

    def __len__(self) -> int:
        return len(self._images)

    def name_of(self, index: int) -> str:
        """Path of a picture."""
        return self._images.name_of(index)

    def sizes(self, batch_size: int) -> list[int]:
        """See `FeedSet`."""
        if not self._picture.batched:
            return [1] * len(self)
        starts = range(0, len(self), batch_size)
        return [min(batch_size, len(self) - start) for start in starts]

    def feeds(self, batch_size: int) -> LazyBatches[Feed]:
        """See `FeedSet`."""
        size = batch_size if self._picture.batched else 1
        batches = self._images.batches(size)
        return LazyBatches(num_batches(len(self), size), lambda: map(self._feed, batches))

    def _feed(self, images: Array) -> Feed:
        return {
            one.name: _as_picture(images, one)
            if one is self._picture
            else np.ones(one.shape(len(images)), one.dtype)
            for one in self.inputs
        }


class NamedFeeds(FeedSet):
    """Samples in `.npz` files.

    Args:
        files: in order.
        inputs: what they feed.
        draw: which samples are taken.

    Raises:
        DataError: a file is damaged or too large, or holds something else than `inputs`.
    """

    def __init__(
        self,
        files: Sequence[Path],
        inputs: Sequence[NetworkInput],
        draw: Draw = EVERY,
    ) -> None:
        self._files, self.inputs = tuple(files), tuple(inputs)
        rows: list[_Row] = []
        keys: list[bytes] = []  # what samples of one batch have in common
        for number, path in enumerate(self._files):
            feed = fit_feed(read_feed(path), self.inputs, path)
            count = _count(feed, self.inputs)
            rows += [(number, row) for row in range(count)]
            keys += [_common(feed, self.inputs)] * count
        chosen = draw.choose(len(rows))
        self._rows, self._keys = [rows[i] for i in chosen], [keys[i] for i in chosen]

    @cached_property
    def fingerprint(self) -> str:
        """See `FeedSet`."""
        return fingerprint_files(self._files, repr(self._rows).encode())

    def __len__(self) -> int:
        return len(self._rows)

    def name_of(self, index: int) -> str:
        """File of a sample, and its place there."""
        number, row = self._rows[index]
        return f"{self._files[number]}, sample {row}"

    def sizes(self, batch_size: int) -> list[int]:
        """See `FeedSet`."""
        return [len(group) for group in self._groups(batch_size)]

    def feeds(self, batch_size: int) -> LazyBatches[Feed]:
        """See `FeedSet`."""
        groups = self._groups(batch_size)
        return LazyBatches(len(groups), lambda: self._read(groups))

    def _groups(self, batch_size: int) -> list[list[_Row]]:
        groups: list[list[_Row]] = []
        last = b""
        for row, key in zip(self._rows, self._keys, strict=True):
            if groups and key == last and len(groups[-1]) < batch_size and self._has_batch:
                groups[-1].append(row)
            else:
                groups.append([row])
            last = key
        return groups

    @property
    def _has_batch(self) -> bool:
        return any(one.batched for one in self.inputs)

    def _read(self, groups: Sequence[Sequence[_Row]]) -> Iterator[Feed]:
        known: tuple[int, Feed] = (-1, {})
        for group in groups:
            samples = []
            for number, row in group:
                if known[0] != number:
                    path = self._files[number]
                    known = number, fit_feed(read_feed(path), self.inputs, path)
                samples.append((known[1], row))
            yield {
                one.name: np.stack([feed[one.name][row] for feed, row in samples])
                if one.batched
                else samples[0][0][one.name]
                for one in self.inputs
            }


def require_picture(inputs: Sequence[NetworkInput]) -> NetworkInput:
    """The input that pictures feed.

    Raises:
        DataError: none of `inputs` takes images.
    """
    for one in inputs:
        if one.picture:
            return one
    raise DataError(
        f"pictures cannot feed {'; '.join(one.describe() for one in inputs)}: give `data` with named"
        " feeds (a folder of .npz whose keys are input names)"
    )


def has_feeds(folder: Path) -> bool:
    """Whether a folder holds named feeds and no pictures."""
    return bool(list_feeds(folder)) and not find_images(folder)


def list_feeds(folder: Path) -> list[Path]:
    """The `.npz` files in a folder, by name; hidden ones are left out."""
    found = (path for path in folder.iterdir() if path.suffix.lower() == FEED_SUFFIX)
    return sorted(path for path in found if path.is_file() and not path.name.startswith("."))


def read_feed(path: Path) -> dict[str, Array]:
    """The arrays of an `.npz` file; nothing is unpickled.

    Raises:
        DataError: it is damaged, holds none or other objects, or unpacks to more than 1 GiB.
    """
    with reading(path, DataError, "unreadable .npz file"):
        require_file(path, DataError)
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > MAX_FEED_BYTES:
            raise DataError(f"{path}: unpacks to {size} bytes, more than 1 GiB: split it")
        with np.load(path, allow_pickle=False) as arrays:
            feed = {name: arrays[name] for name in arrays.files}
    if not feed:
        raise DataError(f"{path}: holds no arrays")
    return feed


def fit_feed(feed: Feed, inputs: Sequence[NetworkInput], path: Path) -> dict[str, Array]:
    """`feed` as the network takes it: every input with its type, and samples in the first axis.

    A sample may come without that axis. The array of a network of one input may have any name, and
    an image its channels last.

    Raises:
        DataError: an input is missing, or has another type or shape, or holds NaN.
    """
    if len(inputs) == 1 and len(feed) == 1:
        feed = {inputs[0].name: next(iter(feed.values()))}
    missing = [one.name for one in inputs if one.name not in feed]
    if missing:
        raise DataError(
            f"{path}: has {', '.join(map(one_line, feed))}, and lacks {', '.join(missing)}; the network"
            f" reads {'; '.join(one.describe() for one in inputs)}"
        )
    fitted = {one.name: _fit(feed[one.name], one, path) for one in inputs}
    if len({len(fitted[one.name]) for one in inputs if one.batched}) > 1:
        raise DataError(f"{path}: its arrays differ in their number of samples")
    return fitted


def _fit(value: Array, one: NetworkInput, path: Path) -> Array:
    wanted = np.dtype(one.dtype)
    if not np.can_cast(value.dtype, wanted, "same_kind"):
        raise DataError(f"{path}: {one.name!r} is {value.dtype}, the network reads {one.dtype}")
    if one.batched and _fits(value.shape, one):
        value = value[None]
    sample = value.shape[1:] if one.batched else value.shape
    turned = (*sample[-1:], *sample[:-1])
    if one.picture == "chw" and one.batched and not _fits(sample, one) and _fits(turned, one):
        value, sample = np.moveaxis(value, -1, 1), turned
    if not _fits(sample, one) or value.size == 0:
        raise DataError(
            f"{path}: {one.name!r} is {list(value.shape)}, the network reads {one.describe()}"
        )
    cast = value.astype(wanted)
    if np.issubdtype(wanted, np.floating) and not np.isfinite(cast).all():
        raise DataError(f"{path}: {one.name!r} holds NaN or infinity")
    if np.issubdtype(wanted, np.integer) and not np.array_equal(cast, value):
        raise DataError(f"{path}: {one.name!r} holds numbers that {one.dtype} cannot")
    return cast


def _fits(sides: Sequence[int], one: NetworkInput) -> bool:
    low, high = one.smallest or one.sides, one.largest or one.sides
    return len(sides) == len(low) and all(
        least <= side <= most for side, least, most in zip(sides, low, high, strict=True)
    )


def _count(feed: Feed, inputs: Sequence[NetworkInput]) -> int:
    return next((len(feed[one.name]) for one in inputs if one.batched), 1)


def _common(feed: Feed, inputs: Sequence[NetworkInput]) -> bytes:
    """Digest of what samples of one batch must share: shapes, and values that no batch axis tells apart."""
    digest = hashlib.sha256()
    for one in inputs:
        value = feed[one.name]
        digest.update(repr(value.shape[int(one.batched) :]).encode())
        if not one.batched:
            digest.update(np.ascontiguousarray(value).tobytes())
    return digest.digest()


def _as_picture(images: Array, one: NetworkInput) -> Array:
    """Prepared images [n, channels, h, w] in the layout and type of the input."""
    turned = images if one.picture == "chw" else np.moveaxis(images, 1, -1)
    turned = turned if one.batched else turned[0]
    wanted = np.dtype(one.dtype)
    if np.issubdtype(wanted, np.integer):
        limits = np.iinfo(wanted)
        turned = np.clip(np.rint(turned), limits.min, limits.max)
    return np.ascontiguousarray(turned, dtype=wanted)


def as_mapping(value: object, where: str) -> dict[str, Array]:
    """One feed of somebody else: a mapping of names to arrays.

    Raises:
        DataError: it is something else.
    """
    if not isinstance(value, Mapping) or not value:
        raise DataError(
            f"{where}: a {type(value).__name__} is no feed; one maps input names to arrays"
        )
    return {str(name): np.asarray(array) for name, array in value.items()}
