"""A lock between processes, held on an open file: the system frees it however its owner ends."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def hold_lock(path: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold `path`, created where it is missing, for this process alone.

    `waiting` is called once if another process holds it, before waiting for that one to end.

    Raises:
        OSError: `path` cannot be opened for writing.
    """
    with path.open("ab") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting is not None:
                waiting()
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield
