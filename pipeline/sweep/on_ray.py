"""The cells of a sweep as tasks of Ray: placed by what they need, tried again where a node is lost.

Ray decides where a cell runs and counts its resources; the workspace, which all nodes see, holds what a lost
try has finished. Tries follow each other with growing pauses, which Ray's own retries do not have.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from reptrt.pipeline.cluster import ANSWER_SECONDS, connect
from reptrt.pipeline.sweep.cell import CellProgress, CellResult
from reptrt.pipeline.sweep.grid import Cell, Resources
from reptrt.pipeline.sweep.memory import memory_of
from reptrt.pipeline.sweep.run import Executor, SweepWatch, Work
from reptrt.pipeline.sweep.waiting import Waiting

_AHEAD = 4
"""Tasks that wait for each one that could run: enough to keep nodes busy, few enough to stay small."""
_POLL_SECONDS = 0.5
_REMEMBERED = 100
"""Cells that have ended, whose memory says what others of their kind need."""


class Asked(NamedTuple):
    """What a cell asks Ray for; names are Ray's."""

    num_cpus: int
    num_gpus: float
    memory: int

    def fits(self, nodes: Iterable[Mapping[str, Any]]) -> bool:
        """Whether one of `ray.nodes()` could ever run it."""
        return any(
            node["Resources"].get("CPU", 0) >= self.num_cpus
            and node["Resources"].get("GPU", 0) >= self.num_gpus
            and node["Resources"].get("memory", 0) >= self.memory
            for node in nodes
            if node["Alive"]
        )

    def describe(self) -> str:
        """For people."""
        gpus = f", {self.num_gpus:g} GPUs" if self.num_gpus else ""
        return f"{self.num_cpus} CPUs{gpus} and {self.memory / 2**30:.1f} GiB"


def on_ray(
    address: str | None,
    work: Work,
    say: Callable[[str], None] = lambda _: None,
    one_first: bool = False,
) -> Executor:
    """An executor on the cluster at `address`; None starts Ray on this machine.

    Args:
        address: `auto`, `HOST:PORT` or `ray://HOST:PORT`.
        work: what a task does.
        say: told where Ray's dashboard is, if it has one.
        one_first: start the cells of a group when its first one has ended: for a workspace without locks, which
            would keep them from making what they share at the same time.

    Raises:
        MissingComponentError: Ray is not installed, or nothing answers at `address`.
    """
    ray = connect(address, say)

    def execute(
        cells: Sequence[Cell], resources: Resources, watch: SweepWatch
    ) -> Iterator[CellResult]:
        waiting = Waiting(cells, resources.retries, one_first)
        tasks = _Tasks(ray, work, resources, watch)
        try:
            while waiting or tasks.running:
                while tasks.have_room and (cell := waiting.pop()) is not None:
                    tasks.start(cell)
                for cell, result, is_lost in tasks.wait():
                    if is_lost and _try_again(waiting, cell, result, watch):
                        continue
                    waiting.release(cell)
                    yield result
        finally:
            tasks.cancel()

    return execute


class _Tasks:
    """Cells that run as tasks of Ray, or are queued there."""

    def __init__(self, ray: Any, work: Work, resources: Resources, watch: SweepWatch) -> None:
        self._ray, self._work, self._resources, self._watch = ray, work, resources, watch
        self._board = ray.remote(num_cpus=0, max_restarts=-1)(_Board).remote()
        self._task = ray.remote(max_retries=0)(_task)
        self._ended: deque[tuple[Cell, CellResult]] = deque(maxlen=_REMEMBERED)
        self._asked: set[Asked] = set()
        self.running: dict[Any, Cell] = {}

    @property
    def have_room(self) -> bool:
        """Whether another one would not wait for long."""
        return len(self.running) < _AHEAD * _slots(self._ray, self._resources)

    def start(self, cell: Cell) -> None:
        """Queue `cell`, with what it asks for."""
        own = self._resources
        asked = Asked(own.cpus, own.gpus, memory_of(cell, own, self._ended))
        if asked not in self._asked and not asked.fits(self._ray.nodes()):
            self._watch.say(f"{cell.name}: waits for a node with {asked.describe()}")
        self._asked.add(asked)
        placed = self._task.options(**asked._asdict(), name=cell.name)
        self.running[placed.remote(self._work, cell, own, self._board)] = cell

    def wait(self) -> list[tuple[Cell, CellResult, bool]]:
        """Those that have ended, and whether they were lost; none where none does so within a moment."""
        if not self.running:  # all pause
            time.sleep(_POLL_SECONDS)
            return []
        ready, _ = self._ray.wait(list(self.running), num_returns=1, timeout=_POLL_SECONDS)
        if not ready:
            _show(self._ray, self._board, self._watch)
        found = []
        for reference in ready:
            cell = self.running.pop(reference)
            result, is_lost = _result(self._ray, reference, cell)
            self._ended.append((cell, result))
            found.append((cell, result, is_lost))
        return found

    def cancel(self) -> None:
        """Stop all."""
        for reference in self.running:
            self._ray.cancel(reference, force=True)


def _try_again(waiting: Waiting, cell: Cell, result: CellResult, watch: SweepWatch) -> bool:
    pause = waiting.again(cell)
    if pause is not None:
        watch.progress(CellProgress(cell.name, "", f"again in {pause:.0f} s: {result.reason}"))
    return pause is not None


class _Board:
    """Where cells are, for the driver to read: an actor, since tasks run anywhere."""

    def __init__(self) -> None:
        self._latest: dict[str, CellProgress] = {}

    def post(self, progress: CellProgress) -> None:
        self._latest[progress.cell] = progress

    def read(self) -> list[CellProgress]:
        latest, self._latest = list(self._latest.values()), {}
        return latest


def _task(work: Work, cell: Cell, resources: Resources, board: Any) -> CellResult:
    from ray.util import get_node_ip_address

    node = str(get_node_ip_address())  # type: ignore[no-untyped-call]
    return work(cell, resources, node, lambda progress: board.post.remote(progress))


def _show(ray: Any, board: Any, watch: SweepWatch) -> None:
    """Show where cells are; a board whose node is lost comes back elsewhere, and begins anew."""
    try:
        latest = ray.get(board.read.remote(), timeout=ANSWER_SECONDS)
    except (ray.exceptions.RayError, TimeoutError):
        return
    for progress in latest:
        watch.progress(progress)


def _slots(ray: Any, resources: Resources) -> int:
    """Cells that the cluster could run at once, now."""
    total = ray.cluster_resources()
    slots = total.get("CPU", 1) / resources.cpus
    if resources.gpus:
        slots = min(slots, total.get("GPU", 0) / resources.gpus)
    return max(int(slots), 1)


def _result(ray: Any, reference: Any, cell: Cell) -> tuple[CellResult, bool]:
    """How the task ended, and whether another try may end otherwise: its worker, node or files were lost."""
    try:
        result: CellResult = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        failed = CellResult(cell.name, cell.key, "failed", str(error.cause)[:300])
        return failed, isinstance(error.cause, OSError)
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[0][:300]
        return CellResult(cell.name, cell.key, "lost", reason or type(error).__name__), True
    return result, False
