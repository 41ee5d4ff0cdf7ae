"""Cells as tasks of Ray, on two simulated nodes: workers are killed, a node goes away."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from reptrt.pipeline.recipe import Recipe
from reptrt.pipeline.sweep import waiting
from reptrt.pipeline.sweep.cell import CellProgress, CellResult
from reptrt.pipeline.sweep.grid import Cell, Resources
from reptrt.pipeline.sweep.on_ray import Asked, on_ray
from reptrt.pipeline.sweep.run import run_sweep
from tests.command_line import reptrt

ray = pytest.importorskip("ray")
cluster_utils = pytest.importorskip("ray.cluster_utils")

RESOURCES = Resources(memory=1 << 20)


class Watch:
    def __init__(self) -> None:
        self.ended: list[str] = []

    def say(self, line: str) -> None:
        pass

    def progress(self, progress: CellProgress) -> None:
        pass

    def finished(self, result: CellResult) -> None:
        self.ended.append(result.cell)


def work(
    workspace: Path,
    cell: Cell,
    resources: Resources,
    node: str,
    watch: Callable[[CellProgress], None],
) -> CellResult:
    """What a cell does, by its name; each try leaves a mark."""
    with (workspace / cell.name).open("a") as file:
        file.write("try\n")
    tries = (workspace / cell.name).read_text().count("try")
    if cell.name.startswith("killed") and tries == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if cell.name.startswith("doomed"):
        os.kill(os.getpid(), signal.SIGKILL)
    if cell.name.startswith("slow"):
        time.sleep(2)
    if cell.name.startswith("bad"):
        raise ValueError("a fault")
    if cell.name.startswith("late") and tries == 1:
        raise OSError("the store does not answer")
    if cell.name.startswith("turn"):
        (workspace / "order").open("a").write(f"{cell.name} begins\n")
        time.sleep(0.3)
        (workspace / "order").open("a").write(f"{cell.name} ends\n")
    watch(CellProgress(cell.name, node, "work", 1.0))
    return CellResult(cell.name, cell.key, "done", seconds=float(tries))


@pytest.fixture(scope="module")
def cluster() -> Iterator[object]:
    found = cluster_utils.Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 1,
            "object_store_memory": 100 << 20,
            "include_dashboard": False,
        },
    )
    yield found
    ray.shutdown()
    found.shutdown()


def cells(*names: str) -> list[Cell]:
    return [Cell(name, name, Recipe(model=name), {}) for name in names]


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "PAUSE_SECONDS", 0.1)


def test_killed_workers_and_a_lost_node_lose_no_cell(cluster, tmp_path: Path) -> None:
    second = cluster.add_node(num_cpus=1, object_store_memory=100 << 20)
    cluster.wait_for_nodes()
    execute = on_ray(cluster.address, partial(work, tmp_path))
    watch = Watch()
    names = ("slow-1", "killed", "bad", "doomed", "slow-2", "plain", "late")
    removed = False

    class Removing(Watch):
        def finished(self, result: CellResult) -> None:
            nonlocal removed
            if not removed:
                removed = True
                cluster.remove_node(second, allow_graceful=False)
            super().finished(result)

    watch = Removing()
    results = run_sweep(
        cells(*names), tmp_path, Resources(memory=1 << 20, retries=2), watch, execute
    )
    assert [one.cell for one in results] == list(names)
    assert sorted(watch.ended) == sorted(names)
    found = {one.cell: one.status for one in results}
    assert found == {"slow-1": "done", "killed": "done", "bad": "failed", "doomed": "lost",
                     "slow-2": "done", "plain": "done", "late": "done"}  # fmt: skip
    assert "a fault" in results[2].reason
    tries = {name: (tmp_path / name).read_text().count("try") for name in names}
    assert tries["killed"] >= 2
    assert (tries["bad"], tries["doomed"]) == (1, 3)
    assert tries["late"] >= 2


def test_a_cell_that_is_too_large_for_every_node_is_seen() -> None:
    small = {"Alive": True, "Resources": {"CPU": 4.0, "memory": 8.0 * 2**30}}
    large = {"Alive": False, "Resources": {"CPU": 64.0, "memory": 512.0 * 2**30, "GPU": 8.0}}
    assert Asked(4, 0, 8 * 2**30).fits([small, large])
    for asked in (Asked(5, 0, 1), Asked(1, 0.5, 1), Asked(1, 0, 9 * 2**30)):
        assert not asked.fits([small, large])
    assert Asked(5, 0.5, 3 * 2**29).describe() == "5 CPUs, 0.5 GPUs and 1.5 GiB"


def test_without_locks_the_first_cell_of_a_group_ends_before_the_others_begin(
    cluster, tmp_path: Path
) -> None:
    second = cluster.add_node(num_cpus=2, object_store_memory=100 << 20)
    cluster.wait_for_nodes()
    execute = on_ray(cluster.address, partial(work, tmp_path), one_first=True)
    wanted = [Cell(name, "one", Recipe(model="m"), {}) for name in ("turn-1", "turn-2", "turn-3")]
    results = run_sweep(wanted, tmp_path, RESOURCES, Watch(), execute)
    cluster.remove_node(second)
    assert [one.status for one in results] == ["done"] * 3
    order = (tmp_path / "order").read_text().splitlines()
    assert order[:2] == ["turn-1 begins", "turn-1 ends"]
    assert len(order) == 6


@pytest.mark.parametrize("option", ["--ray", "--address"])
def test_an_address_where_nothing_answers_is_one_line(tmp_path: Path, option: str) -> None:
    ray.shutdown()
    (tmp_path / "sweep.yaml").write_text("grid: {model: repvgg_a0}")
    cluster = (option, "127.0.0.1:1")
    outcome = reptrt("sweep", tmp_path / "sweep.yaml", *cluster, "--workspace", tmp_path / "out")
    assert outcome.code == 4
    (line,) = outcome.complaints
    assert "no Ray cluster answers at 127.0.0.1:1" in line


def test_without_ray_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    (tmp_path / "sweep.yaml").write_text("grid: {model: repvgg_a0}")
    outcome = reptrt("sweep", tmp_path / "sweep.yaml", "--ray", "--workspace", tmp_path / "out")
    assert outcome.code == 4
    assert "pip install 'reptrt[cluster]'" in outcome.complaints[-1]
