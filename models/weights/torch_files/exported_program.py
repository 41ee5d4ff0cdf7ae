"""Read the weights in a program that `torch.export.save` wrote (`.pt2`); the program itself is not run.

Its zip file holds a table (JSON) and one entry of raw numbers per tensor. Loading the program would evaluate
expressions of the file, so nothing but the table is looked at.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch

from reptrt.engines.foreign.text import one_line
from reptrt.models.weights.torch_files.records import CorruptFileError, RefusedPickleError

_TABLE = "data/weights/model_weights_config.json"
_FORMAT = "archive_format"
_MAX_ENTRIES = 200_000
_DTYPES = {
    1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64,
    6: torch.float16, 7: torch.float32, 8: torch.float64, 12: torch.bool, 13: torch.bfloat16,
}  # fmt: skip


class _Size(TypedDict):
    as_int: int


class _Meta(TypedDict):
    dtype: int
    sizes: list[_Size]
    strides: list[_Size]
    storage_offset: _Size


def is_exported_program(path: Path) -> bool:
    """Whether `path` is a zip file that says it is a program."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(f"/{_FORMAT}") for name in archive.namelist())
    except Exception:  # a damaged zip file can raise anything; its reader will say it
        return False


def read_exported_weights(path: Path) -> dict[str, torch.Tensor]:
    """Parameters and buffers of a program, by name.

    Raises:
        CorruptFileError: it is damaged, or of a form that is not known here.
        RefusedPickleError: a tensor is pickled, or the zip file unpacks to more than it is.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
        if len(entries) > _MAX_ENTRIES or not stored:
            raise RefusedPickleError("its zip file is compressed, or has too many entries")
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise RefusedPickleError("its zip file unpacks to more than it is")
        tables = [name for name in archive.namelist() if name.endswith(f"/{_TABLE}")]
        if len(tables) != 1:
            raise CorruptFileError("an exported program without a table of weights")
        folder = tables[0].rpartition("/")[0]
        try:
            table = json.loads(archive.read(tables[0]))["config"]
            return {
                str(name): _read(archive, f"{folder}/{entry['path_name']}", entry)
                for name, entry in table.items()
            }
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            if isinstance(error, (CorruptFileError, RefusedPickleError)):
                raise
            raise CorruptFileError(
                f"its table of weights is damaged ({one_line(error)})"
            ) from error


def _read(archive: zipfile.ZipFile, name: str, entry: dict[str, object]) -> torch.Tensor:
    if entry.get("use_pickle"):
        raise RefusedPickleError(f"{one_line(name)} is pickled")
    meta: _Meta = entry["tensor_meta"]  # type: ignore[assignment]  # any other form raises
    dtype = _DTYPES[meta["dtype"]]
    sizes = [int(side["as_int"]) for side in meta["sizes"]]
    strides = [int(side["as_int"]) for side in meta["strides"]]
    content = archive.read(name)
    offset = meta["storage_offset"]["as_int"]
    reach = offset + 1 + sum((n - 1) * step for n, step in zip(sizes, strides, strict=True))
    elements = int(np.prod(sizes, dtype=np.float64))
    if min([offset, *sizes, *strides], default=0) < 0 or (
        elements and (reach * dtype.itemsize > len(content))
    ):
        raise CorruptFileError(
            f"{one_line(name)} has {len(content)} bytes, too few for {one_line(sizes)}"
        )
    if not elements:
        return torch.empty(sizes, dtype=dtype)
    values = torch.frombuffer(bytearray(content), dtype=dtype)
    return values.as_strided(sizes, strides, offset).clone()
