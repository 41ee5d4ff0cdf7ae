"""Files that are either whole or absent: written under a temporary name, then renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass
from pathlib import Path

import numpy as np

_CHUNK_BYTES = 1 << 20
_UNWRITABLE = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would be larger than this process may write (ulimit -f)",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "no permission",
    errno.EPERM: "no permission",
    errno.EISDIR: "a folder has that name",
    errno.EEXIST: "a part of its path is a file",
    errno.ENOTDIR: "a part of its path is a file",
    errno.ENAMETOOLONG: "its name is too long",
}


class WriteError(OSError):
    """The folder or its disk takes no file; nothing half-written is left under the file's name."""

    exit_code = 2


@contextmanager
def replace_when_done(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block succeeds.

    The temporary name is the same on every run, so what `kill -9` leaves is overwritten by the
    next run.

    Raises:
        WriteError: full disk, read-only folder, a folder of that name.
    """
    temporary = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.chmod(0o666 & ~_umask())  # some libraries write for the owner alone
        temporary.replace(path)
    except Exception as error:
        reason = _UNWRITABLE.get(_error_number(error))
        if reason is None:
            raise
        raise WriteError(f"{path}: cannot be written: {reason}") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_json(content: object, path: Path) -> None:
    """Write strict, indented JSON atomically; NaN and infinities become null, records objects.

    Raises:
        TypeError: a value is neither JSON, a dataclass, a NumPy scalar or array, nor a path.
    """
    text = json.dumps(_strict(content), indent=2, allow_nan=False)
    with replace_when_done(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def file_sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _error_number(error: Exception) -> int:
    """Return the system's number; libraries in Rust, such as safetensors, have it in their text."""
    if isinstance(error, OSError):
        return error.errno or 0
    number = re.search(r"\(os error (\d+)\)", str(error))
    return int(number[1]) if number else 0


def _strict(value: object) -> object:
    if is_dataclass(value):
        return {field.name: _strict(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, (np.generic, np.ndarray)):
        return _strict(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
