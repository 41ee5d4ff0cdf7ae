"""A lock between processes, held on an open file: the system frees it however its owner ends."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)


class LockError(OSError):
    """What should be the file of a lock is a link."""

    exit_code = 2


_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}


@contextmanager
def hold_lock(path: Path, waiting: Callable[[], None] | None = None) -> Iterator[int]:
    """Hold `path`, created where it is missing, for this process alone; a link is not followed.

    Yields the open file: a process that inherits it holds the lock too, until both have ended.

    `waiting` is called once if another process holds it, before waiting for that one to end. On a file
    system without locks the work goes on without, and a warning says so.

    Raises:
        LockError: `path` is a link.
        OSError: `path` cannot be opened for writing.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise LockError(f"{path}: is a link, and not followed: remove it") from None
    try:
        _lock(descriptor, path, waiting)
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def hold_passing_lock(path: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """As `hold_lock`, on a file that serves for nothing else: it is gone when nobody wants it any more.

    Raises:
        LockError: `path` is a link.
        OSError: `path` cannot be opened for writing.
    """
    while True:
        with hold_lock(path, waiting) as descriptor:
            if not _is_file_of(descriptor, path):
                continue  # whoever held it has removed it: others may hold a new one
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _is_file_of(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat(follow_symlinks=False))
    except FileNotFoundError:
        return False


def _lock(descriptor: int, path: Path, waiting: Callable[[], None] | None) -> None:
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting is not None:
                waiting()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        logger.warning("%s: this file system has no locks: run one process at a time there", path)
