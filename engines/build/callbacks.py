"""TensorRT's callbacks during a build: a logger that keeps the messages, and a progress monitor.

Both subclass types of the TensorRT module that the builder was given, so the classes are made by
functions. An exception must never cross TensorRT's C++ frames: the monitor keeps it, cancels the
build, and `BuildWatch.check` raises it afterwards. Ctrl-C goes the same way.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType, ModuleType
from typing import Any

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Called with (phase, steps done, steps in all), from any thread."""

_BAR, _PARTS = "build engine", 1000
_LAYERS_PREFIX = "Layers:"


@dataclass
class BuildLog:
    """Mutable record of one build: errors, warnings, and the fused-layer list of TensorRT-RTX."""

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    layers: str = ""


@dataclass
class BuildWatch:
    """Mutable state shared by the monitor and the signal handler of one build."""

    progress: Progress | None = None
    error: Exception | None = None
    interrupted: bool = False

    def report(self, phase: str, done: int, total: int) -> None:
        """Call the user's callback; keep an exception that it raises."""
        if self.progress is None or self.stopped:
            return
        try:
            self.progress(phase, done, total)
        except Exception as error:
            self.error = error
        except KeyboardInterrupt:
            self.interrupted = True

    @property
    def stopped(self) -> bool:
        """Whether TensorRT should cancel the build."""
        return self.interrupted or self.error is not None

    def check(self) -> None:
        """Raise what stopped the build, if anything did."""
        if self.interrupted:
            raise KeyboardInterrupt
        if self.error is not None:
            raise self.error


def create_logger(trt: ModuleType, log: BuildLog) -> Any:
    """Return a `trt.ILogger` that fills `log`; it takes every severity, VERBOSE included."""

    class _Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if message.startswith(_LAYERS_PREFIX):
                log.layers = message
            elif severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                log.errors.append(message)
            elif severity == trt.ILogger.WARNING:
                log.warnings.append(message)
                logger.debug("%s", message)

    return _Logger()


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class Phases:
    """The nested phases of a build as one share of the whole, which never falls.

    A step of a phase counts as far as the phases below it are. TensorRT calls from several threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[str, _Phase] = {}
        self._share = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> float:
        """Note that a phase of `steps` steps begins below `parent`; return the share, 0 to 1."""
        with self._lock:
            self._running[name] = _Phase(parent, max(steps, 1))
            return self._advance()

    def step(self, name: str, done: int) -> float:
        """Note that `done` steps of a phase are finished; return the share."""
        with self._lock:
            if name in self._running:
                self._running[name].done = done
            return self._advance()

    def finish(self, name: str) -> float:
        """Note that a phase is finished; return the share, 1 for the outermost one."""
        with self._lock:
            phase = self._running.pop(name, None)
            if phase is not None and phase.parent is None:
                self._share = 1.0
            return self._advance()

    def _advance(self) -> float:
        roots = [name for name, phase in self._running.items() if phase.parent is None]
        found = max((self._share_of(name) for name in roots), default=self._share)
        self._share = max(self._share, min(found, 1.0))
        return self._share

    def _share_of(self, name: str) -> float:
        phase = self._running[name]
        below = [
            self._share_of(other) for other, one in self._running.items() if one.parent == name
        ]
        return min(phase.done + max(below, default=0.0), phase.steps) / phase.steps


def create_progress_monitor(trt: ModuleType, watch: BuildWatch) -> Any:
    """Return a `trt.IProgressMonitor` that reports to `watch` and obeys it."""

    class _Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._phases = Phases()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._report(self._phases.start(phase_name, parent_phase, num_steps))

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._report(self._phases.step(phase_name, step + 1))
            return not watch.stopped

        def phase_finish(self, phase_name: str) -> None:
            self._report(self._phases.finish(phase_name))

        def _report(self, share: float) -> None:
            watch.report(_BAR, int(share * _PARTS), _PARTS)

    return _Monitor()


@contextmanager
def deferred_interrupt(watch: BuildWatch) -> Iterator[None]:
    """Turn Ctrl-C and `kill` inside the block into `watch.interrupted`; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def note(signum: int, frame: FrameType | None) -> None:
        watch.interrupted = True

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
