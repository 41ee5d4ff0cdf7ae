"""The cells of a sweep as tasks of Ray: placed by what they need, tried again where a node is lost.

Ray decides where a cell runs, counts its resources and starts it again elsewhere; the workspace, which all
nodes see, holds what a lost try has finished. Nothing here schedules.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from reptrt.pipeline.cluster import ANSWER_SECONDS, connect
from reptrt.pipeline.sweep.cell import CellProgress, CellResult
from reptrt.pipeline.sweep.grid import Cell, Resources
from reptrt.pipeline.sweep.memory import memory_of
from reptrt.pipeline.sweep.run import Executor, SweepWatch, Work

_AHEAD = 4
"""Tasks that wait for each one that could run: enough to keep nodes busy, few enough to stay small."""
_POLL_SECONDS = 0.5
_REMEMBERED = 100
"""Cells that have ended, whose memory says what others of their kind need."""


def on_ray(
    address: str | None, work: Work, say: Callable[[str], None] = lambda _: None
) -> Executor:
    """An executor on the cluster at `address`; None starts Ray on this machine.

    Args:
        address: `auto`, `HOST:PORT` or `ray://HOST:PORT`.
        work: what a task does.
        say: told where Ray's dashboard is, if it has one.

    Raises:
        MissingComponentError: Ray is not installed, or nothing answers at `address`.
    """
    ray = connect(address, say)

    def execute(
        cells: Sequence[Cell], resources: Resources, watch: SweepWatch
    ) -> Iterator[CellResult]:
        board = ray.remote(num_cpus=0, max_restarts=-1)(_Board).remote()
        task = ray.remote(max_retries=resources.retries, retry_exceptions=[OSError])(_task)
        waiting = list(reversed(cells))
        running: dict[Any, Cell] = {}
        ended: deque[tuple[Cell, CellResult]] = deque(maxlen=_REMEMBERED)
        try:
            while waiting or running:
                while waiting and len(running) < _AHEAD * _slots(ray, resources):
                    cell = waiting.pop()
                    options = {
                        "num_cpus": resources.cpus,
                        "num_gpus": resources.gpus,
                        "memory": memory_of(cell, resources, ended),
                        "name": cell.name,
                    }
                    reference = task.options(**options).remote(work, cell, resources, board)
                    running[reference] = cell
                ready, _ = ray.wait(list(running), num_returns=1, timeout=_POLL_SECONDS)
                for reference in ready:
                    cell = running.pop(reference)
                    ended.append((cell, _result(ray, reference, cell)))
                    yield ended[-1][1]
                if not ready:
                    _show(ray, board, watch)
        finally:
            for reference in running:
                ray.cancel(reference, force=True)

    return execute


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


def _result(ray: Any, reference: Any, cell: Cell) -> CellResult:
    try:
        result: CellResult = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        return CellResult(cell.name, cell.key, "failed", str(error.cause)[:300])
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[0][:300]
        return CellResult(cell.name, cell.key, "lost", reason or type(error).__name__)
    return result
