"""Files that are either whole or absent: written under a temporary name, then renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass
from pathlib import Path

from reptrt.engines.file_lock import hold_lock
from reptrt.engines.partial import partial_file, partial_folder

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
    errno.ELOOP: "it is a link",
    errno.EMFILE: "too many files are open (ulimit -n)",
    errno.ENFILE: "too many files are open",
    errno.EIO: "the disk has a fault",
}


class WriteError(OSError):
    """The folder or its disk takes no file; nothing half-written is left under the file's name."""

    exit_code = 2


@contextmanager
def replace_when_done(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block succeeds.

    `path` is new or a regular file: devices, pipes and links are left alone. The temporary file is
    new, of a name that nobody can guess. What `kill -9` leaves is removed by the next write in that folder.

    Raises:
        WriteError: full disk, read-only folder, or something else than a file has that name.
    """
    with writing(path):
        require_file_or_nothing(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial_file(path) as temporary:
            yield temporary
            if not temporary.stat().st_size:
                raise FileNotFoundError(errno.ENOENT, "nothing was written", str(path))
            temporary.chmod(0o666 & ~_umask())  # some libraries write for the owner alone
            temporary.replace(path)


def make_folder_once(
    folder: Path, is_complete: Callable[[], bool], fill: Callable[[Path], None]
) -> None:
    """Make a shared folder, whole or absent, by one process; the others wait and find it.

    Args:
        folder: to make; one that is there and not complete is replaced.
        is_complete: whether `folder` is there and needs nothing; it is asked again under the lock.
        fill: writes the content into an empty folder.

    Raises:
        WriteError: it cannot be made.
    """
    if is_complete():  # needs no lock, and perhaps lies where nothing can be written
        return
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with hold_lock(folder.with_name(f".{folder.name}.lock")):
            if is_complete():
                return
            with folder_when_done(folder) as unfinished:
                fill(unfinished)
                if folder.exists():
                    shutil.rmtree(folder)


@contextmanager
def folder_when_done(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside `folder`; rename it to `folder` when the block succeeds."""
    with partial_folder(folder.parent, folder.name) as unfinished:
        unfinished.chmod(0o777 & ~_umask())
        yield unfinished
        unfinished.rename(folder)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the system says against a write below or at `path` into a WriteError that says why."""
    try:
        yield
    except Exception as error:  # libraries in Rust have classes of their own
        reason = _UNWRITABLE.get(_error_number(error))
        if reason is None or isinstance(getattr(error, "exit_code", None), int):
            raise
        raise WriteError(f"{path}: cannot be written: {reason}") from error


def cache_folder() -> Path:
    """Return `reptrt` in the user's cache folder; in the temporary one for a user without a home."""
    caches = os.environ.get("XDG_CACHE_HOME")
    if caches:
        return Path(caches) / "reptrt"
    try:
        home = Path.home()
    except RuntimeError:  # neither HOME nor an entry in the password file
        return _own_folder(Path(tempfile.gettempdir(), f"reptrt-{os.getuid()}"))
    return home / ".cache" / "reptrt"


def _own_folder(folder: Path) -> Path:
    """Return `folder`, made where it is missing; another one if someone else has put it there."""
    with suppress(OSError):
        folder.mkdir(mode=0o700)
    with suppress(OSError):
        found = folder.lstat()
        if (
            stat.S_ISDIR(found.st_mode)
            and found.st_uid == os.getuid()
            and not found.st_mode & 0o022
        ):
            return folder
    return Path(tempfile.mkdtemp(prefix=f"{folder.name}-", dir=folder.parent))


def write_json(content: object, path: Path) -> None:
    """Write strict, indented JSON atomically; NaN and infinities become null, records objects.

    Raises:
        TypeError: a value is neither JSON, a dataclass, a NumPy scalar or array, nor a path.
    """
    text = json.dumps(_strict(content), indent=2, allow_nan=False)
    with replace_when_done(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def file_sha256(path: Path) -> str:
    """Hex digest of a file's bytes.

    Raises:
        OSError: it cannot be read, or is a folder, a pipe or a device, which may never end.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is no file", str(path))
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def require_file_or_nothing(path: Path) -> None:
    """Refuse to write to what is neither new nor a regular file.

    Raises:
        WriteError: a folder, a link, a device, a pipe or a socket has that name.
    """
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    if stat.S_ISDIR(mode):
        raise WriteError(f"{path}: cannot be written: a folder has that name")
    if not stat.S_ISREG(mode):
        kind = "a link" if stat.S_ISLNK(mode) else "a device, a pipe or a socket"
        raise WriteError(f"{path}: cannot be written: it is {kind}, and no file; give another name")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def system_refusal(error: BaseException) -> str | None:
    """One line on what the system refused, where that is why `error` was raised; else None.

    For errors that no reader or writer has turned into its own: most often of temporary files.
    """
    if isinstance(error, FileNotFoundError) and "temporary directory" in str(error):
        return "no folder for temporary files can be written: make room, or set TMPDIR to another"
    reason = _UNWRITABLE.get(_error_number(error))
    if reason is None:
        return None
    name = getattr(error, "filename", None)
    return f"{name or 'a file, perhaps one in TMPDIR'}: the system refuses it: {reason}"


def _error_number(error: BaseException) -> int:
    """Return the system's number; libraries in Rust, such as safetensors, have it in their text."""
    if isinstance(error, OSError):
        return error.errno or 0
    number = re.search(r"\(os error (\d+)\)", str(error))
    if number is None and os.strerror(errno.ENOSPC) in str(error):  # ONNX Runtime
        return errno.ENOSPC
    return int(number[1]) if number else 0


def _strict(value: object) -> object:
    if is_dataclass(value):
        return {field.name: _strict(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    if hasattr(value, "tolist"):  # of NumPy, which this module does not load
        return _strict(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
