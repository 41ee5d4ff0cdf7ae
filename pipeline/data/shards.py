"""Images in tar shards (WebDataset) and Parquet files, read where they lie: nothing is unpacked.

A tar shard is indexed once, from its headers; an image is then read at its place. Of a Parquet file one row group
is held at a time, so images that are asked for in order cost one pass.
"""

from __future__ import annotations

import io
import tarfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from reptrt.engines.foreign.border import reading
from reptrt.engines.foreign.text import one_line
from reptrt.engines.target import MissingComponentError
from reptrt.pipeline.data.image_folder import IMAGE_SUFFIXES, ImageFile, find_images
from reptrt.pipeline.data.preprocess import DataError

TAR, PARQUET = ".tar", ".parquet"
SHARD_SUFFIXES = (TAR, PARQUET)
LABEL_SUFFIX = ".cls"
LABEL_COLUMNS = ("label", "cls", "class")
MAX_GROUP_BYTES = 1 << 30
"""Of a row group, as its file states it and as it is: two are held at most."""
MAX_LABEL_BYTES = 1 << 12
_one_at_a_time = threading.Lock()  # or each thread that decodes would read a row group for itself


@dataclass(frozen=True)
class TarMember:
    """An image in a tar file: `size` bytes from `offset`."""

    shard: Path
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.shard}:{self.name}"

    def open(self, mode: Literal["rb"] = "rb") -> io.BytesIO:
        """Its bytes.

        Raises:
            OSError: the shard cannot be read.
        """
        return io.BytesIO(_read_at(self.shard, self.offset, self.size))


@dataclass(frozen=True)
class ParquetImage:
    """An image in a Parquet file: in `column`, row `row` of row group `group`."""

    shard: Path
    name: str
    column: str
    group: int
    row: int

    def __str__(self) -> str:
        return f"{self.shard}:{self.name}"

    def open(self, mode: Literal["rb"] = "rb") -> io.BytesIO:
        """Its bytes.

        Raises:
            OSError: the shard cannot be read.
        """
        found = self.shard.stat()
        version = (found.st_ino, found.st_mtime_ns, found.st_size)
        with _one_at_a_time:
            images = _row_group(self.shard, version, self.column, self.group)
        return io.BytesIO(images[self.row].as_buffer())


Labelled = tuple[ImageFile, str]
"""An image, and its label as the shard has it: a number, the name of a class, or a WordNet id."""


def find_shards(path: Path) -> list[Path]:
    """`path` itself where it is a shard, or the shards in that folder by name, unless images lie there too."""
    found = sorted(path.iterdir()) if path.is_dir() else [path]
    shards = [
        each
        for each in found
        if each.suffix.lower() in SHARD_SUFFIXES
        and not each.name.startswith(".")
        and each.is_file()
    ]
    return [] if shards and path.is_dir() and find_images(path) else shards


def list_images(shards: Sequence[Path]) -> list[ImageFile]:
    """All images of `shards`, in the order in which they lie there.

    Raises:
        DataError: a shard is damaged, is not what its name says, or has no image.
        MissingComponentError: Parquet, and PyArrow is not installed.
    """
    return [image for shard in shards for image, _ in _open_shard(shard, labelled=False)]


def list_labelled(shards: Sequence[Path]) -> list[Labelled]:
    """All images of `shards` and their labels.

    In a tar shard the label of `x.jpg` is the text of `x.cls`, as WebDataset has it; in a Parquet file it is in the
    row of the image, in a column called `label`, `cls` or `class`.

    Raises:
        DataError: as `list_images`; an image without a label.
        MissingComponentError: likewise.
    """
    return [found for shard in shards for found in _open_shard(shard, labelled=True)]


def _open_shard(shard: Path, labelled: bool) -> list[Labelled]:
    is_tar = shard.suffix.lower() == TAR
    problem = "not a tar file" if is_tar else "not a Parquet file"
    with reading(shard, DataError, problem):
        found = (_open_tar if is_tar else _open_parquet)(shard, labelled)
        if not found:
            known = " ".join(suffix[1:] for suffix in IMAGE_SUFFIXES)
            raise DataError(f"{shard}: holds no image ({known})")
        return found


def _open_tar(shard: Path, labelled: bool) -> list[Labelled]:
    images: dict[str, TarMember] = {}
    labels: dict[str, str] = {}
    with tarfile.open(shard, "r:") as archive:  # compressed ones have no places to read at
        end = shard.stat().st_size
        for member in archive:
            if not member.isreg() or member.sparse is not None:
                continue
            if not 0 <= member.offset_data <= member.offset_data + member.size <= end:
                raise DataError(f"{shard}: {one_line(member.name)}: is cut short")
            key, suffix = _split(member.name)
            if suffix in IMAGE_SUFFIXES:
                images[key] = TarMember(shard, member.name, member.offset_data, member.size)
            elif suffix == LABEL_SUFFIX and labelled and member.size <= MAX_LABEL_BYTES:
                labels[key] = _read_at(shard, member.offset_data, member.size).decode().strip()
    if labelled and (bare := images.keys() - labels.keys()):
        first = next(key for key in images if key in bare)
        raise DataError(
            f"{shard}: {one_line(images[first].name)}: has no label; each image needs a file of the same"
            f" name that ends in {LABEL_SUFFIX}, and {len(bare)} of {len(images)} have none"
        )
    return [(image, labels.get(key, "")) for key, image in images.items()]


def _split(name: str) -> tuple[str, str]:
    """Key of a sample and the rest, as WebDataset splits them: at the first dot of the file's name."""
    path = PurePosixPath(name)
    stem, dot, rest = path.name.partition(".")
    return str(path.with_name(stem)) if stem else name, f"{dot}{rest}".lower()


def _open_parquet(shard: Path, labelled: bool) -> list[Labelled]:
    parquet = _pyarrow_parquet()
    with parquet.ParquetFile(shard) as file:
        if file.metadata.num_rows > shard.stat().st_size:
            raise DataError(
                f"{shard}: states {file.metadata.num_rows} rows, more than it has bytes"
            )
        column, is_struct = _image_column(shard, file.schema_arrow)
        label = _label_column(shard, file.schema_arrow) if labelled else None
        wanted = [label] if label else []
        if is_struct and file.schema_arrow.field(column).type.get_field_index("path") >= 0:
            wanted.append(f"{column}.path")
        found: list[Labelled] = []
        for group in range(file.metadata.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            table = file.read_row_group(group, columns=wanted)
            paths = (
                table.column(column).to_pylist() if len(wanted) > bool(label) else [None] * count
            )
            labels = table.column(label).to_pylist() if label else [""] * count
            if not len(paths) == len(labels) == count:
                raise DataError(f"{shard}: row group {group} has not the rows that the file states")
            for row, (path, text) in enumerate(zip(paths, labels, strict=True)):
                name = (path or {}).get("path") or f"row {len(found)}"
                if labelled and text is None:
                    raise DataError(f"{shard}: {one_line(name)}: has no label")
                found.append((ParquetImage(shard, str(name), column, group, row), str(text)))
    return found


def _image_column(shard: Path, schema: Any) -> tuple[str, bool]:
    """The column that holds encoded images, and whether it is a struct of `bytes` and `path`."""
    import pyarrow

    for field in schema:
        kind = field.type
        if pyarrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            return field.name, True
    binary = (pyarrow.types.is_binary, pyarrow.types.is_large_binary)
    for field in schema:
        if any(check(field.type) for check in binary):
            return field.name, False
    raise DataError(
        f"{shard}: no column of images; needs one of bytes, or of structs with `bytes`, and has"
        f" {one_line(', '.join(schema.names))}"
    )


def _label_column(shard: Path, schema: Any) -> str:
    for name in LABEL_COLUMNS:
        if name in schema.names:
            return name
    raise DataError(
        f"{shard}: no labels; needs a column called {', '.join(LABEL_COLUMNS)}, and has"
        f" {one_line(', '.join(schema.names))}"
    )


@lru_cache(maxsize=2)
def _row_group(shard: Path, version: tuple[int, ...], column: str, group: int) -> Any:
    """Encoded images of a row group, as an array of PyArrow; `version` tells a file from a former one."""
    with _pyarrow_parquet().ParquetFile(shard) as file:
        stated = file.metadata.row_group(group).total_byte_size
        if stated > MAX_GROUP_BYTES:
            raise OSError(
                f"row group {group} takes {stated / 2**30:.1f} GiB; write the file with smaller ones"
            )
        is_struct = file.schema_arrow.field(column).type.num_fields > 0
        table = file.read_row_group(group, columns=[f"{column}.bytes" if is_struct else column])
    array = table.column(column).combine_chunks()
    return array.field("bytes") if is_struct else array


def _pyarrow_parquet() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise MissingComponentError(
            f"Parquet needs PyArrow ({one_line(error)}): pip install pyarrow"
        ) from None
    return pyarrow.parquet


def _read_at(path: Path, offset: int, size: int) -> bytes:
    with path.open("rb") as stream:
        stream.seek(offset)
        return stream.read(size)
