"""Runs a reader on hostile input: only its own one-line error, in a minute, in two gigabytes."""

from __future__ import annotations

import re
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NamedTuple

MOST_SECONDS = 60
MOST_BYTES = 2 << 30
LONGEST_MESSAGE = 2000
FEW, MANY = 200, 2000  # inputs of a border in `make test`, and in `make regress`

PLANTED = "\x1b]0;owned\x07 <script>alert(1)</script>\n\u202etxt.exe\r\u2028"
"""What is planted in names: a terminal sequence, markup, line breaks, a mark that turns the writing."""


class TooSlowError(BaseException):
    """A reader took more than a minute; no handler of ours catches it."""


class Outcome(NamedTuple):
    """Whether a reader took its input, and what went wrong otherwise than on one line."""

    accepted: bool
    fault: str = ""


def read_or_refuse(read: Callable[[], object]) -> Outcome:
    """Call `read`, which may refuse on one visible line."""
    refusal = None
    with time_limit():
        try:
            read()
        except Exception as error:
            refusal = error
        except TooSlowError:
            return Outcome(False, f"more than {MOST_SECONDS} s")
    if refusal is None:
        return Outcome(True)
    message, frames = str(refusal), traceback.extract_tb(refusal.__traceback__)[-4:]
    if getattr(refusal, "exit_code", None) != 2:
        places = ", ".join(f"{frame.filename}:{frame.lineno}" for frame in frames)
        return Outcome(False, f"{type(refusal).__name__}: {message[:300]} at {places}")
    if not message or not message.isprintable() or len(message) > LONGEST_MESSAGE:
        return Outcome(False, f"no single visible line: {message[:2000]!a}")
    return Outcome(False)


@contextmanager
def time_limit() -> Iterator[None]:
    """A minute of the processor's time; ten of the clock's, for what waits and for busy machines."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TooSlowError

    before = {number: signal.signal(number, stop) for number in (signal.SIGALRM, signal.SIGPROF)}
    signal.alarm(10 * MOST_SECONDS)
    signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def bounded(folder: Path) -> Iterator[None]:
    """Check afterwards that memory stayed in bounds and that nothing was written beside `folder`."""
    around = set(folder.parent.iterdir())
    before = _reset_peak()
    yield
    assert _memory("VmHWM") - before < MOST_BYTES
    assert set(folder.parent.iterdir()) == around


def _reset_peak() -> int:
    """Let the peak of this process's memory start over; return what it holds now."""
    Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def _memory(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) << 10
