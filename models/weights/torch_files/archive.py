"""The zip file that `torch.save` writes: a pickle, and one entry of raw numbers per storage.

Nothing in it is compressed, so what is read is never larger than the file.
"""

from __future__ import annotations

import io
import math
import zipfile
from pathlib import Path
from types import TracebackType

import torch

from reptrt.models.weights.torch_files.records import (
    CorruptFileError,
    RefusedPickleError,
    StoredTensor,
)

_MAGIC = b"PK\x03\x04"
_MAX_ENTRIES = 200_000


def is_torch_archive(path: Path) -> bool:
    """Whether the file starts like a zip file."""
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


class TorchArchive:
    """An open archive; use it in a `with` statement.

    Args:
        file: Its path, or its content.

    Raises:
        RefusedPickleError: It is no archive of torch, or unpacks to more than it is.
        CorruptFileError: It is damaged.
    """

    def __init__(self, file: Path | bytes) -> None:
        self._storages: dict[str, torch.Tensor] = {}
        self._prefix = ""
        self._size = len(file) if isinstance(file, bytes) else file.stat().st_size
        self._bytes_left = 2 * self._size  # tensors may share storages, but not without end
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(file) if isinstance(file, bytes) else file)
        except Exception as error:  # a damaged zip file can raise anything
            raise CorruptFileError(f"its zip file is damaged: {type(error).__name__}") from error
        try:
            self._check()
        except BaseException:
            self._zip.close()
            raise

    def __enter__(self) -> TorchArchive:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._zip.close()

    def read_pickle(self) -> bytes:
        """Return the pickle."""
        return self._read("data.pkl")

    def load(self, tensor: StoredTensor) -> torch.Tensor:
        """Return `tensor` with its numbers, on the CPU."""
        self._bytes_left -= tensor.num_bytes
        if self._bytes_left < 0:
            raise RefusedPickleError("its tensors are larger than the file")
        if not math.prod(tensor.shape):
            return torch.empty(tensor.shape, dtype=tensor.dtype)
        storage = self._storage(tensor)
        return storage.as_strided(tensor.shape, tensor.stride, tensor.offset)

    def _check(self) -> None:
        entries = self._zip.infolist()
        if len(entries) > _MAX_ENTRIES or len({e.filename for e in entries}) < len(entries):
            raise RefusedPickleError("its zip file has too many entries, or one twice")
        pickles = [e.filename for e in entries if f"/{e.filename}".endswith("/data.pkl")]
        if len(pickles) != 1:
            raise RefusedPickleError("a zip file that torch.save did not write")
        self._prefix = pickles[0].removesuffix("data.pkl")
        names = {e.filename for e in entries}
        if f"{self._prefix}constants.pkl" in names:
            raise RefusedPickleError("a TorchScript archive")
        if any(e.compress_type != zipfile.ZIP_STORED or e.flag_bits & 1 for e in entries):
            raise RefusedPickleError(
                "its zip file is compressed or encrypted; torch.save does neither"
            )
        if sum(e.file_size for e in entries) > self._size:
            raise RefusedPickleError("its zip file unpacks to more than it is")
        if f"{self._prefix}byteorder" in names and self._read("byteorder") != b"little":
            raise RefusedPickleError("written on a big-endian machine; save it on another one")

    def _storage(self, tensor: StoredTensor) -> torch.Tensor:
        key = tensor.storage
        if not key.isascii() or not key.isdigit():
            raise RefusedPickleError("its pickle refers to a file outside the archive's data")
        name = f"{key} {tensor.dtype}"
        if name not in self._storages:
            content = self._read(f"data/{key}")
            if len(content) != tensor.storage_size * tensor.dtype.itemsize:
                raise CorruptFileError(
                    f"storage {key} has {len(content)} bytes, its pickle says"
                    f" {tensor.storage_size} x {tensor.dtype.itemsize}"
                )
            self._storages[name] = torch.frombuffer(bytearray(content), dtype=tensor.dtype)
        return self._storages[name]

    def _read(self, name: str) -> bytes:
        try:
            return self._zip.read(f"{self._prefix}{name}")
        except KeyError as error:
            raise CorruptFileError(f"its zip file has no {name[:80]!r}") from error
        except Exception as error:  # a damaged zip file can raise anything
            raise CorruptFileError(
                f"{name[:80]!r} in its zip file is damaged: {type(error).__name__}"
            ) from error
