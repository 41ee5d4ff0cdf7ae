"""The images a pipeline runs on: unlabelled ones to calibrate with, labelled ones to evaluate with."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reptrt.engines.foreign.border import reading
from reptrt.models.inputs import NetworkInput
from reptrt.models.spec import Preprocess, Task
from reptrt.pipeline.data.array_images import ARRAY_SUFFIXES, ArrayImages, read_array_header
from reptrt.pipeline.data.batches import (
    DECODING_THREADS,
    EVERY,
    Batch,
    Draw,
    ImageSet,
    LazyBatches,
    prepared_batches,
)
from reptrt.pipeline.data.coco import Annotations, find_annotations, read_coco
from reptrt.pipeline.data.feeds import (
    FeedSet,
    NamedFeeds,
    PictureFeeds,
    require_picture,
)
from reptrt.pipeline.data.folder_images import FolderImages
from reptrt.pipeline.data.image_folder import (
    IMAGE_SUFFIXES,
    ImageFile,
    describe_contents,
    find_images,
    fingerprint_files,
)
from reptrt.pipeline.data.in_memory import LabelledArrays, MaskedArrays, MetricFunction
from reptrt.pipeline.data.labels import (
    LABELS_FILE,
    label_shards,
    read_class_folders,
    read_labels_file,
)
from reptrt.pipeline.data.masks import MaskSet, open_masks
from reptrt.pipeline.data.preprocess import DataError, Prepared, check_image, prepare, read_image
from reptrt.pipeline.data.shards import SHARD_SUFFIXES, find_shards, list_images, list_labelled
from reptrt.pipeline.data.stored_feeds import feed_files, is_feed_source

__all__ = [
    "Batch",
    "ClassificationSet",
    "DataError",
    "DetectionSet",
    "EvaluationSet",
    "FolderImages",
    "ImageSet",
    "LazyBatches",
    "MaskSet",
    "open_classification",
    "open_detection",
    "open_evaluation",
    "open_images",
    "open_masks",
    "open_samples",
]

logger = logging.getLogger(__name__)

_LEGAL = (
    f"a folder of images ({' '.join(suffix[1:] for suffix in IMAGE_SUFFIXES)}) or of shards"
    f" ({' '.join(suffix[1:] for suffix in SHARD_SUFFIXES)}), a shard, or one .npy or .npz file"
)


@dataclass(frozen=True)
class ClassificationSet:
    """Images and the class that each shows.

    Attributes:
        files: The images, in a folder or in shards.
        labels: `[n]` int64, class indices of the model.
        preprocess: What the network expects.
    """

    files: tuple[ImageFile, ...]
    labels: NDArray[np.int64]
    preprocess: Preprocess

    def __len__(self) -> int:
        return len(self.files)

    def part(self, start: int, stop: int) -> ClassificationSet:
        """The images from `start` up to `stop`."""
        return replace(self, files=self.files[start:stop], labels=self.labels[start:stop])

    @property
    def images(self) -> ImageSet:
        """The images without their labels, in the same order."""
        return FolderImages(self.files, self.preprocess)

    @cached_property
    def fingerprint(self) -> str:
        """Hex digest of the images and their labels."""
        return fingerprint_files(self.files, self.labels.tobytes())

    def batches(self, batch_size: int) -> LazyBatches[Batch]:
        """Return batches decoded while iterating, which raises DataError on an unreadable image."""
        return prepared_batches(self._load, len(self), batch_size)

    def _load(self, index: int) -> Prepared:
        return prepare(read_image(self.files[index]), self.preprocess)


@dataclass(frozen=True)
class DetectionSet:
    """Images and the objects in them.

    Attributes:
        files: The images.
        annotations: Of each image, in pixels of the image.
        sizes: Height and width that the annotations are for, None where not stated.
        class_names: By class index.
        preprocess: What the network expects.
    """

    files: tuple[Path, ...]
    annotations: tuple[Annotations, ...]
    sizes: tuple[tuple[int, int] | None, ...]
    class_names: tuple[str, ...]
    preprocess: Preprocess

    def __len__(self) -> int:
        return len(self.files)

    def part(self, start: int, stop: int) -> DetectionSet:
        """The images from `start` up to `stop`."""
        kept = slice(start, stop)
        return replace(
            self, files=self.files[kept], annotations=self.annotations[kept], sizes=self.sizes[kept]
        )

    @property
    def images(self) -> ImageSet:
        """The images without their annotations, in the same order."""
        return FolderImages(self.files, self.preprocess)

    @cached_property
    def fingerprint(self) -> str:
        """Hex digest of the images and their annotations."""
        return fingerprint_files(self.files, *(objects.as_bytes() for objects in self.annotations))

    def batches(self, batch_size: int) -> LazyBatches[Batch]:
        """Return batches decoded while iterating, which raises DataError on an unreadable image."""
        return prepared_batches(self._load, len(self), batch_size)

    def _load(self, index: int) -> Prepared:
        prepared = prepare(read_image(self.files[index]), self.preprocess)
        stated = self.sizes[index]
        if stated is not None and stated != prepared.source_size:
            height, width = prepared.source_size
            raise DataError(
                f"{self.files[index]}: is {width}x{height} pixels, but its annotations are for"
                f" {stated[1]}x{stated[0]}; scale them with the image"
            )
        return prepared


EvaluationSet = (
    ClassificationSet | DetectionSet | MaskSet | LabelledArrays | MaskedArrays | MetricFunction
)


def open_images(
    path: Path, preprocess: Preprocess, *, limit: int | None = None, seed: int = 0
) -> ImageSet:
    """Open calibration images: a folder, searched recursively, shards, or one `.npy` or `.npz` file.

    Unreadable images are left out with one warning each.

    Args:
        path: Folder of images or of shards, one shard, or array file.
        preprocess: What the network expects.
        limit: At most this many images, drawn at random; None takes all.
        seed: Of that draw.

    Raises:
        DataError: `path` holds no readable image.
    """
    with reading(path, DataError, "cannot be calibrated with"):
        return _open_images(path, preprocess, Draw(limit, seed))


def _open_images(path: Path, preprocess: Preprocess, draw: Draw) -> ImageSet:
    shards = find_shards(path)
    if path.is_dir() or shards:
        found = list_images(shards) if shards else find_images(path)
        return FolderImages(_readable(path, draw.choose(len(found)), found), preprocess)
    if not path.exists():
        raise DataError(f"{path}: does not exist; give {_LEGAL}")
    if path.suffix.lower() not in ARRAY_SUFFIXES:
        raise DataError(f"{path}: cannot be calibrated with; give {_LEGAL}")
    array = read_array_header(path, preprocess.image_size, preprocess.num_channels)
    return ArrayImages(array, draw.choose(array.shape[0]), preprocess)


def open_samples(
    path: Path,
    inputs: Sequence[NetworkInput],
    preprocess: Preprocess,
    stored: Path,
    draw: Draw = EVERY,
) -> FeedSet:
    """Open calibration samples: pictures as in `open_images`, or named feeds (`stored_feeds`).

    Args:
        path: Folder, array file, JSON of Polygraphy or loader script.
        inputs: What the network reads.
        preprocess: How pictures are prepared for it.
        stored: Folder where the feeds of JSON and scripts go.
        draw: Which samples are taken.

    Raises:
        DataError: `path` holds no sample, or nothing that the network reads.
    """
    if is_feed_source(path):
        return NamedFeeds(feed_files(path, stored, draw.limit), inputs, draw)
    if not any(one.picture for one in inputs) and path.suffix.lower() in ARRAY_SUFFIXES:
        return NamedFeeds(feed_files(path, stored, draw.limit), inputs, draw)
    require_picture(inputs)  # said before anything is decoded
    with reading(path, DataError, "cannot be calibrated with"):
        return PictureFeeds(_open_images(path, preprocess, draw), inputs)


def open_evaluation(
    path: Path,
    task: Task,
    preprocess: Preprocess,
    num_classes: int,
    classes: Sequence[str] | None = None,
) -> EvaluationSet:
    """Open the labelled images of a task: see `open_classification`, `open_detection`, `open_masks`."""
    with reading(path, DataError, "cannot be evaluated with"):
        if task == "detection":
            return open_detection(path, preprocess, num_classes, classes)
        if task == "segmentation":
            return open_masks(path, preprocess, num_classes)
        return open_classification(path, preprocess, num_classes, classes)


def open_classification(
    path: Path, preprocess: Preprocess, num_classes: int, classes: Sequence[str] | None = None
) -> ClassificationSet:
    """Open a folder with `labels.csv` (`file,label`), with one subfolder of images per class, or labelled shards.

    Args:
        path: Folder, or one shard.
        preprocess: What the network expects.
        num_classes: Of the model.
        classes: Names of the classes, where the checkpoint states them.

    Raises:
        DataError: No folder, no labels, or labels that the model does not have.
    """
    shards = find_shards(path)
    if not path.is_dir() and not shards:
        raise DataError(
            f"{path}: no such folder; give one with {LABELS_FILE}, one subfolder per class, or labelled shards"
        )
    labelled: Sequence[tuple[ImageFile, int]]
    if (path / LABELS_FILE).is_file():
        labelled = read_labels_file(path / LABELS_FILE, num_classes, classes)
    elif shards:
        labelled = label_shards(list_labelled(shards), num_classes, classes)
    else:
        labelled = read_class_folders(path, num_classes, classes)
    files, labels = zip(*labelled, strict=True)
    return ClassificationSet(files, np.array(labels, dtype=np.int64), preprocess)


def open_detection(
    path: Path,
    preprocess: Preprocess,
    num_classes: int | None = None,
    classes: Sequence[str] | None = None,
) -> DetectionSet:
    """Open a COCO JSON file, or the folder it is in, and the images beside it.

    Args:
        path: Folder or JSON file.
        preprocess: What the network expects; layout `letterbox`.
        num_classes: Of the model; None accepts any number of categories.
        classes: Names of the classes, where the checkpoint states them.

    Raises:
        DataError: The file is missing or malformed, an image is missing, or nothing is annotated.
    """
    if not path.exists():
        raise DataError(
            f"{path}: does not exist; give a folder with a COCO JSON file and its images"
        )
    coco = read_coco(find_annotations(path), num_classes, classes)
    return DetectionSet(coco.files, coco.annotations, coco.sizes, coco.class_names, preprocess)


def _readable(folder: Path, chosen: Sequence[int], found: Sequence[ImageFile]) -> list[ImageFile]:
    """Return the chosen files that can be decoded; warn of the others."""
    if not found:
        raise DataError(f"{folder}: no images; found {describe_contents(folder)}; give {_LEGAL}")
    files = [found[index] for index in chosen]
    with ThreadPoolExecutor(DECODING_THREADS) as pool:
        faults = list(pool.map(check_image, files))
    for fault in filter(None, faults):
        logger.warning("%s: left out of the calibration", fault)
    readable = [file for file, fault in zip(files, faults, strict=True) if fault is None]
    if not readable:
        raise DataError(
            f"{folder}: none of {len(files)} images is readable ({describe_contents(folder)}); the"
            f" first: {faults[0]}; give {_LEGAL}"
        )
    return readable
