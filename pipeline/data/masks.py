"""Images for segmentation: each with a mask that holds the class of every pixel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reptrt.engines.foreign.border import explain
from reptrt.engines.foreign.text import one_line
from reptrt.models.spec import Preprocess
from reptrt.pipeline.data.batches import Batch, ImageSet, LazyBatches, prepared_batches
from reptrt.pipeline.data.folder_images import FolderImages
from reptrt.pipeline.data.image_folder import find_images, fingerprint_files
from reptrt.pipeline.data.preprocess import (
    DataError,
    Prepared,
    open_image,
    prepare,
    prepare_mask,
    read_image,
)

VOID = 255
"""Class of pixels that count for nothing."""
FOLDERS = (("images", "masks"), ("JPEGImages", "SegmentationClass"))
"""Of images, and of their masks; the second pair is Pascal VOC's, which has masks for some images."""
_INDEX_MODES = ("1", "L", "P")
_LEGAL = "give a folder with images/ and masks/: one index PNG per image, 255 for void"


@dataclass(frozen=True)
class MaskSet:
    """Images, and the class of every pixel.

    Attributes:
        files: The images.
        masks: Of each image, an image of its size whose values are classes, or `VOID`.
        num_classes: Of the model; 0 where it does not tell.
        preprocess: What the network expects.
    """

    files: tuple[Path, ...]
    masks: tuple[Path, ...]
    num_classes: int
    preprocess: Preprocess

    def __len__(self) -> int:
        return len(self.files)

    @property
    def images(self) -> ImageSet:
        """The images without their masks, in the same order."""
        return FolderImages(self.files, self.preprocess)

    @cached_property
    def fingerprint(self) -> str:
        """Hex digest of the images and their masks."""
        return fingerprint_files([*self.files, *self.masks])

    def batches(self, batch_size: int) -> LazyBatches[Batch]:
        """Return batches decoded while iterating, which raises DataError on an unreadable image."""
        return prepared_batches(self._load, len(self), batch_size)

    def classes_of(self, index: int) -> NDArray[np.uint8]:
        """Classes `[h, w]` of an image, fitted to the network's input as the image is.

        Raises:
            DataError: The mask is unreadable, of another size than the image, or holds a class that
                the model does not have.
        """
        path = self.masks[index]
        mask = read_mask(path)
        with open_image(self.files[index]) as image:
            size = image.size
        if mask.shape != size[::-1]:
            raise DataError(
                f"{path}: is {mask.shape[1]}x{mask.shape[0]} pixels, and its image"
                f" {self.files[index].name} {size[0]}x{size[1]}"
            )
        self._require_classes(path, mask)
        return prepare_mask(mask, self.preprocess, VOID)

    def _require_classes(self, path: Path, mask: NDArray[np.uint8]) -> None:
        wrong = (mask >= self.num_classes) & (mask != VOID)
        if self.num_classes and wrong.any():
            row, column = np.argwhere(wrong)[0]
            raise DataError(
                f"{path}: holds class {mask[row, column]} at x {column}, y {row}; the model has the"
                f" classes 0..{self.num_classes - 1}, and {VOID} is void"
            )

    def _load(self, index: int) -> Prepared:
        return prepare(read_image(self.files[index]), self.preprocess)


def open_masks(path: Path, preprocess: Preprocess, num_classes: int) -> MaskSet:
    """Open a folder with images and masks, which are paired by their names without the ending.

    Args:
        path: Holds `images/` and `masks/`, or Pascal VOC's folders.
        preprocess: What the network expects.
        num_classes: Of the model; 0 where it does not tell.

    Raises:
        DataError: No such folders, no images, or an image or a mask without the other.
    """
    if not path.is_dir():
        raise DataError(f"{path}: no such folder; {_LEGAL}")
    pair = next(
        (p for p in FOLDERS if all((path / name).is_dir() for name in p)),
        None,
    )
    if pair is None:
        found = ", ".join(sorted(one_line(entry.name) for entry in path.iterdir())[:4])
        raise DataError(f"{path}: no images/ and masks/ in it, but {found or 'nothing'}; {_LEGAL}")
    images, masks = (_by_stem(path / name) for name in pair)
    if not images:
        raise DataError(f"{path / pair[0]}: no images; {_LEGAL}")
    if pair == FOLDERS[1]:
        images = {stem: image for stem, image in images.items() if stem in masks}
    _require_pairs(images, masks, path / pair[1])
    stems = sorted(images)
    return MaskSet(
        tuple(images[stem] for stem in stems),
        tuple(masks[stem] for stem in stems),
        num_classes,
        preprocess,
    )


def read_mask(path: Path) -> NDArray[np.uint8]:
    """Classes `[h, w]` of an index image.

    Raises:
        DataError: It is unreadable, or holds colours.
    """
    try:
        with open_image(path) as image:
            if image.mode not in _INDEX_MODES:
                raise DataError(
                    f"{path}: its pixels are {image.mode}, not the numbers of classes: save an index"
                    " image (PNG with a palette, or 8-bit grey)"
                )
            return np.asarray(image).astype(np.uint8)
    except DataError:
        raise
    except Exception as error:  # decoders of damaged files raise anything
        raise DataError(f"{path}: unreadable mask ({explain(error)})") from error


def _by_stem(folder: Path) -> dict[str, Path]:
    """Images below `folder` by their path without the ending."""
    found: dict[str, Path] = {}
    for path in find_images(folder):
        stem = path.relative_to(folder).with_suffix("").as_posix()
        if stem in found:
            raise DataError(
                f"{path}: has the name of {found[stem].name}, by which masks are found; rename one"
            )
        found[stem] = path
    return found


def _require_pairs(images: Mapping[str, Path], masks: Mapping[str, Path], folder: Path) -> None:
    alone = [images[stem] for stem in sorted(images.keys() - masks.keys())]
    if alone:
        raise DataError(
            f"{alone[0]}: {len(alone)} of {len(images)} images have no mask of their name in {folder}"
        )
    unread = [masks[stem] for stem in sorted(masks.keys() - images.keys())]
    if unread:
        raise DataError(
            f"{unread[0]}: {len(unread)} of {len(masks)} masks have no image of their name"
        )
