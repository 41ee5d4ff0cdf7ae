"""The border where foreign bytes come in: whatever goes wrong behind it becomes the reader's one line."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from reptrt.engines.foreign.text import one_line, visible

_NO_MEMORY = re.compile(
    r"bad.?alloc|(can.?t|cannot|failed to) allocate memory|out of memory|can.?t start new thread"
    r"|failed to map segment",
    re.IGNORECASE,
)


@contextmanager
def reading(path: Path | str, refuse: Callable[[str], Exception], problem: str) -> Iterator[None]:
    """Turn every exception of the block into `refuse("<path>: <problem>: <reason>")`.

    Errors that already have an exit code pass; what they quote of the file is made visible.

    Args:
        path: what is read.
        refuse: makes the reader's error, most often its class.
        problem: what a user is told, as "not a checkpoint".
    """
    try:
        yield
    except Exception as error:  # a damaged file can raise anything in the libraries that read it
        if isinstance(getattr(error, "exit_code", None), int):
            if not str(error).isprintable():
                error.args = (visible(" ".join(str(error).split())),)
            raise
        raise refuse(f"{visible(str(path))}: {problem}: {explain(error)}") from error


def explain(error: BaseException) -> str:
    """Say on one line what an error of a library means for whoever brought the file."""
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    if isinstance(error, MemoryError):
        return "it needs more memory than there is"
    if isinstance(error, OverflowError):
        return "a number in it is too large"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, UnicodeError):
        return "it holds text that is not UTF-8"
    return one_line(error)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, in Python or in a library; the errors that it led to count too."""
    seen: set[int] = set()
    here: BaseException | None = error
    while here is not None and id(here) not in seen:
        seen.add(id(here))
        if isinstance(here, MemoryError) or _NO_MEMORY.search(str(here)):
            return True
        here = here.__cause__ or here.__context__
    return False


def require_file(path: Path, refuse: Callable[[str], Exception]) -> None:
    """Refuse what never ends or blocks: folders, pipes, devices, sockets; a link counts as its target.

    Raises `refuse(message)` for them, and OSError where there is nothing.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise refuse(
            f"{visible(str(path))}: is no file, but a folder, a pipe, a socket or a device"
        )


def read_bytes(path: Path, limit: int, refuse: Callable[[str], Exception]) -> bytes:
    """Return the content of a file of at most `limit` bytes; see `require_file`."""
    require_file(path, refuse)
    with path.open("rb") as stream:  # which asks for as much memory as it may read
        size = os.fstat(stream.fileno()).st_size or limit
        content = stream.read(min(size, limit) + 1)
    if len(content) > limit:
        raise refuse(f"{visible(str(path))}: is larger than the {limit / 1e6:.0f} MB that are read")
    return content


def read_json(path: Path, limit: int, refuse: Callable[[str], Exception]) -> object:
    """Return what a JSON file of at most `limit` bytes holds.

    Raises `refuse(message)`: it is missing, too large, not JSON, nested too deep, or has numbers of
    thousands of digits.
    """
    with reading(path, refuse, "cannot be read"):
        text = read_bytes(path, limit, refuse).decode("utf-8")
    try:
        content: object = json.loads(text)
    except json.JSONDecodeError as error:
        raise refuse(
            f"{visible(str(path))}:{error.lineno}: not valid JSON ({error.msg})"
        ) from error
    except (RecursionError, ValueError, MemoryError) as error:
        raise refuse(f"{visible(str(path))}: not valid JSON ({explain(error)})") from error
    return content
