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


def create_progress_monitor(trt: ModuleType, watch: BuildWatch) -> Any:
    """Return a `trt.IProgressMonitor` that reports to `watch` and obeys it."""

    class _Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._lock = threading.Lock()
            self._totals: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with self._lock:
                self._totals[phase_name] = num_steps
            watch.report(phase_name, 0, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            with self._lock:
                total = self._totals.get(phase_name, step + 1)
            watch.report(phase_name, step + 1, total)
            return not watch.stopped

        def phase_finish(self, phase_name: str) -> None:
            with self._lock:
                total = self._totals.pop(phase_name, 1)
            watch.report(phase_name, total, total)

    return _Monitor()


@contextmanager
def deferred_interrupt(watch: BuildWatch) -> Iterator[None]:
    """Turn Ctrl-C inside the block into `watch.interrupted`; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def note(signum: int, frame: FrameType | None) -> None:
        watch.interrupted = True

    previous = signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
