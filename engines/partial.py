"""Files and folders that are not whole yet: one place names, locks and removes them.

Each is called `.<name>.<16 hex digits>.partial`, new and of a name that nobody can guess. Whoever makes one holds a
lock on it, which the system frees however the process ends. So what nobody holds is what `kill -9` left,
and whoever next makes one in that folder removes it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PARTIAL = ".partial"
"""How the names of such files and folders end."""
_NAME = re.compile(r"\.(?P<stem>.+)\.[0-9a-f]{16}\.partial", re.DOTALL)
_LONGEST_NAME = 200  # bytes of what a partial name is made of, for it is longer
_OPEN = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


@contextmanager
def partial_file(path: Path) -> Iterator[Path]:
    """Yield a new, empty file beside `path`, which is removed if it still has that name at the end.

    Raises:
        OSError: the folder takes no file.
    """

    def make(name: Path) -> int:
        return os.open(name, _OPEN | os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)

    remove_leftovers(path.parent)
    with _held(path.parent, _stem(path.name), make) as partial:
        yield partial


@contextmanager
def partial_folder(parent: Path, name: str) -> Iterator[Path]:
    """Yield a new, empty folder in `parent`, which is removed if it still has that name at the end.

    Raises:
        OSError: `parent` takes no folder.
    """
    remove_leftovers(parent)
    with _held(parent, _stem(name), _make_folder) as partial:
        yield partial


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield an empty folder in the system's temporary one, for this user alone; it is removed at the end.

    Raises:
        OSError: no temporary folder takes it.
    """
    parent, name = Path(tempfile.gettempdir()), f"reptrt-{os.getuid()}"
    remove_leftovers(parent, name)
    with _held(parent, name, _make_folder) as folder:
        yield folder


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove what is partial in `folder` and held by no process; of `name` alone, where it is given."""
    entries: list[str] = []
    with suppress(OSError):  # what cannot be listed stays; whoever writes there says what is wrong
        entries = os.listdir(folder)  # noqa: PTH208  # names that are no UTF-8 too
    for entry in entries:
        found = _NAME.fullmatch(entry)
        if found is None or name not in (None, found["stem"]):
            continue
        leftover = folder / entry
        with suppress(OSError):  # somebody holds it, or it is another user's
            descriptor = os.open(leftover, _OPEN | os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(leftover)
            finally:
                os.close(descriptor)


@contextmanager
def _held(folder: Path, stem: str, make: Callable[[Path], int]) -> Iterator[Path]:
    """Yield a new partial file or folder that `make` opens, locked; what still has its name at the end is removed."""
    while True:
        partial = folder / f".{stem}.{secrets.token_hex(8)}.partial"
        try:
            descriptor = make(partial)
            try:
                with suppress(OSError):  # a file system without locks keeps what was killed
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
                if _is_there(
                    partial, descriptor
                ):  # else somebody took it for a leftover just before
                    yield partial
                    return
            finally:
                os.close(descriptor)
        finally:
            _remove(partial)


def _remove(partial: Path) -> None:
    with suppress(OSError):
        if stat.S_ISDIR(partial.lstat().st_mode):
            shutil.rmtree(partial)
        else:
            partial.unlink()


def _is_there(partial: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(partial.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _make_folder(name: Path) -> int:
    while True:
        name.mkdir(mode=0o700)
        with suppress(FileNotFoundError):  # taken for a leftover just before
            return os.open(name, _OPEN | os.O_DIRECTORY)


def _stem(name: str) -> str:
    """`name` in that of its partial file; shorter where that would be too long."""
    if len(os.fsencode(name)) <= _LONGEST_NAME:
        return name
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:32]
