"""Calibration images in one `.npy` or `.npz` file, read one by one: the array is never in memory."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy_format
from PIL import Image

from reptrt.engines.foreign.border import reading, require_file
from reptrt.engines.foreign.limits import MAX_IMAGES
from reptrt.engines.outputs.detection import FloatArray
from reptrt.models.spec import Preprocess
from reptrt.pipeline.data.batches import ImageSet, LazyBatches, num_batches
from reptrt.pipeline.data.image_folder import fingerprint_files
from reptrt.pipeline.data.preprocess import DataError, prepare, require_size

ARRAY_SUFFIXES = (".npy", ".npz")
_PREFERRED_KEY = "images"


@dataclass(frozen=True)
class ArrayFile:
    """Layout of an array file of images.

    Attributes:
        path: `.npy` or `.npz`.
        member: Name inside the `.npz`; None for `.npy`.
        shape: Of the whole array.
        dtype: uint8 or a float.
        offset: Bytes before the first image.
    """

    path: Path
    member: str | None
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    offset: int

    @property
    def image_bytes(self) -> int:
        """Bytes of one image."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize


def read_array_header(path: Path, image_size: tuple[int, int], num_channels: int = 3) -> ArrayFile:
    """Check that a file holds images, and return its layout.

    Legal are float `[n, channels, h, w]`, already normalized and of the network's size, and uint8
    `[n, h, w, 3]`, RGB of any size. Pickled arrays are refused.

    Args:
        path: `.npy`, or `.npz` with one array or one named `images`.
        image_size: Height and width of the network's input in pixels.
        num_channels: Of the network's input.

    Raises:
        DataError: Anything else.
    """
    with reading(path, DataError, "unreadable array file"):
        require_file(path, DataError)
        member = None if path.suffix.lower() == ".npy" else _choose_member(path)
        with _open(path, member) as stream:
            shape, fortran_order, dtype = read_npy_header(stream)
            array = ArrayFile(path, member, shape, dtype, stream.tell())
        stored = _stored_bytes(path, member) - array.offset
    _check_layout(array, (num_channels, *image_size), fortran_order)
    if stored < array.shape[0] * array.image_bytes:
        raise DataError(
            f"{path}: truncated; holds {stored} bytes of an array {list(shape)} {dtype}"
        )
    return array


def is_prepared(path: Path) -> bool:
    """Whether `path` is an array file of floats: images of one size, as the network reads them.

    Raises:
        DataError: it is unreadable.
    """
    if path.suffix.lower() not in ARRAY_SUFFIXES or not path.is_file():
        return False
    with reading(path, DataError, "unreadable array file"):
        member = None if path.suffix.lower() == ".npy" else _choose_member(path)
        with _open(path, member) as stream:
            return bool(np.issubdtype(read_npy_header(stream)[2], np.floating))


class ArrayImages(ImageSet):
    """Chosen images of an array file.

    Args:
        array: Where the images lie.
        indices: Which ones, ascending.
        preprocess: For uint8 images.
    """

    def __init__(self, array: ArrayFile, indices: Sequence[int], preprocess: Preprocess) -> None:
        self._array = array
        self._indices = indices
        self._preprocess = preprocess

    def __len__(self) -> int:
        return len(self._indices)

    def name_of(self, index: int) -> str:
        """Place of an image in the file."""
        return f"{self._array.path}, image {self._indices[index]}"

    @cached_property
    def fingerprint(self) -> str:
        """Hex digest of the whole file and of the chosen indices."""
        return fingerprint_files([self._array.path], np.array(self._indices).tobytes())

    def at(self, index: int) -> FloatArray:
        """One image `[channels, h, w]` float32."""
        with _open(self._array.path, self._array.member) as stream:
            return self._image(stream, self._indices[index])

    def batches(self, batch_size: int) -> LazyBatches[FloatArray]:
        """Return batches `[n, 3, h, w]` float32; iterating raises DataError on NaN or infinity."""

        def read() -> Iterator[FloatArray]:
            with _open(self._array.path, self._array.member) as stream:
                for start in range(0, len(self), batch_size):
                    chosen = self._indices[start : start + batch_size]
                    yield np.stack([self._image(stream, index) for index in chosen])

        return LazyBatches(num_batches(len(self), batch_size), read)

    def _image(self, stream: IO[bytes], index: int) -> FloatArray:
        array = self._array
        with reading(array.path, DataError, f"image {index} is unreadable"):
            stream.seek(array.offset + index * array.image_bytes)
            content = stream.read(array.image_bytes)
            image = np.frombuffer(content, dtype=array.dtype).reshape(array.shape[1:])
        if image.dtype == np.uint8:
            return prepare(Image.fromarray(image), self._preprocess).tensor
        if not np.isfinite(image).all():
            raise DataError(f"{array.path}: image {index} holds NaN or infinity")
        return image.astype(np.float32)


@contextmanager
def _open(path: Path, member: str | None) -> Iterator[IO[bytes]]:
    """Open the bytes of one array; within an archive, seeking backwards starts over."""
    if member is None:
        with path.open("rb") as stream:
            yield stream
    else:
        with zipfile.ZipFile(path) as archive, archive.open(member) as entry:
            yield entry


def _stored_bytes(path: Path, member: str | None) -> int:
    if member is None:
        return path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        return archive.getinfo(member).file_size


def read_member_names(path: Path) -> list[str]:
    """Names of the arrays in an `.npz` file; whoever calls it says what its errors mean."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    return sorted(name.removesuffix(".npy") for name in names if name.endswith(".npy"))


def _choose_member(path: Path) -> str:
    names = read_member_names(path)
    if _PREFERRED_KEY in names:
        return f"{_PREFERRED_KEY}.npy"
    if len(names) == 1:
        return f"{names[0]}.npy"
    found = ", ".join(names) or "none"
    raise DataError(f"{path}: needs one array, or one named '{_PREFERRED_KEY}'; found {found}")


def read_npy_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    """Shape, whether it is stored by columns, and type of a `.npy` file; `stream` is then at its data.

    Whoever calls it says what its errors mean.
    """
    if npy_format.read_magic(stream) == (1, 0):
        return npy_format.read_array_header_1_0(stream)
    return npy_format.read_array_header_2_0(stream)


def _check_layout(array: ArrayFile, input_shape: tuple[int, int, int], fortran_order: bool) -> None:
    shape = array.shape
    planes = np.issubdtype(array.dtype, np.floating) and shape[1:] == input_shape
    pixels = array.dtype == np.uint8 and len(shape) == 4 and shape[3] == 3 and min(shape) > 0
    if not (planes or pixels) or shape[0] == 0:
        raise DataError(
            f"{array.path}: holds {array.dtype} {list(shape)}; needs float"
            f" [n, {', '.join(map(str, input_shape))}] (normalized) or uint8 [n, height, width, 3]"
            " (RGB)"
        )
    if shape[0] > MAX_IMAGES:
        raise DataError(f"{array.path}: holds {shape[0]} images, more than {MAX_IMAGES}")
    if pixels:
        with reading(array.path, DataError, "holds images that are too large"):
            require_size(shape[2], shape[1])
    if fortran_order:
        raise DataError(
            f"{array.path}: stored column by column; save numpy.ascontiguousarray(images) instead"
        )
