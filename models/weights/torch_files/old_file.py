"""Torch's files of before version 1.6: five pickles, then the numbers of each storage.

`torch.load` allocates what the pickle claims and reads what the file has. So the claims are compared
with the file before: every storage is listed once, and all of them together are no larger than it.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

from reptrt.models.weights.torch_files.inert_pickle import read_old_pickles
from reptrt.models.weights.torch_files.records import (
    CorruptFileError,
    RefusedPickleError,
    Storage,
)

_LENGTH = struct.Struct("<q")  # before the numbers of each storage: how many there are


def check_old_file(path: Path) -> None:
    """Check that the file holds only data, and all the numbers that its pickle refers to.

    Raises:
        RefusedPickleError: Its pickle calls something, or claims what is not there.
        CorruptFileError: It is damaged.
    """
    with path.open("rb") as file:
        storages, keys = read_old_pickles(file)
        claimed = _claimed(storages)
        if len(set(map(str, keys))) < len(keys) or {str(key) for key in keys} != claimed.keys():
            raise RefusedPickleError("its pickle refers to storages that the file does not list")
        for key in keys:
            _skip(file, claimed[str(key)])


def _claimed(storages: list[Storage]) -> dict[str, Storage]:
    claimed: dict[str, Storage] = {}
    for storage in storages:
        if claimed.setdefault(storage.key, storage) != storage:
            raise RefusedPickleError("its pickle gives one storage two sizes or types")
    return claimed


def _skip(file: BinaryIO, storage: Storage) -> None:
    """Step over the numbers of `storage`, which must be as many as its pickle says, and there."""
    header = file.read(_LENGTH.size)
    if len(header) < _LENGTH.size or _LENGTH.unpack(header)[0] != storage.size:
        raise CorruptFileError("its storages are not as long as its pickle says")
    num_bytes = storage.size * storage.dtype.itemsize
    here = file.tell()
    if num_bytes > file.seek(0, 2) - here:
        raise CorruptFileError("its storages are longer than the file")
    file.seek(here + num_bytes)
