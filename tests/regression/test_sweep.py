"""Real cells on two simulated nodes of Ray: a worker is killed, a node lost, and nothing changes."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from pathlib import Path

import pytest
import ray
import yaml
from ray.cluster_utils import Cluster

from reptrt.pipeline.sweep.api import sweep
from tests.command_line import TinyProject

pytestmark = pytest.mark.skipif(
    "REPTRT_REGRESSION" not in os.environ, reason="takes minutes: set REPTRT_REGRESSION=1"
)


def learned(log: Path) -> list[str]:
    """Blocks that were learned, in order, over all tries."""
    return re.findall(r"block (\d+) of", log.read_text())


def worker_of_a_run(workspace: Path) -> int | None:
    """Process of Ray that waits for a `reptrt engine` in `workspace`; None where there is none."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_text().split("\0")
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if "engine" in words and any(word.startswith(str(workspace)) for word in words):
            return parent
    return None


def test_a_killed_worker_and_a_lost_node_change_nothing(
    tiny: TinyProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path.cwd()), str(tiny.folder)]))
    models = [f"tiny_models:{name}" for name in ("build", "branches", "colours")]
    content = {
        "base": {"data": str(tiny.data), "evaluation": str(tiny.photos), "image_size": [32, 32],
                 "target": "cpu", "num_samples": 8},
        "grid": {"model": models, "calibrator": ["minmax", "brecq"], "bits": [8, 6]},
        "resources": {"cpus": 1, "memory": "100MiB"},
    }  # fmt: skip
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(content))
    alone = sweep(tmp_path / "sweep.yaml", tmp_path / "alone")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    second = cluster.add_node(num_cpus=1)

    disturbed: list[str] = []

    def disturb() -> None:
        time.sleep(10)
        until = time.monotonic() + 120
        while (worker := worker_of_a_run(tmp_path / "together")) is None:
            assert time.monotonic() < until, "no cell runs"
            time.sleep(0.1)
        os.kill(worker, signal.SIGKILL)
        disturbed.append("a worker was killed")
        time.sleep(10)
        cluster.remove_node(second, allow_graceful=False)
        disturbed.append("a node was lost")

    disturber = threading.Thread(target=disturb)
    disturber.start()
    try:
        together = sweep(tmp_path / "sweep.yaml", tmp_path / "together", ray=cluster.address)
    finally:
        disturber.join()
        ray.shutdown()
        cluster.shutdown()
    assert disturbed == ["a worker was killed", "a node was lost"]
    assert [row.status for row in together] == ["done"] * 12
    assert [row.accuracy for row in together] == [row.accuracy for row in alone]
    for one, other in zip(alone, together, strict=True):
        for name in ("scales.json", "model.trt.onnx"):
            assert (Path(one.folder) / name).read_bytes() == (
                Path(other.folder) / name
            ).read_bytes()
        blocks = learned(Path(other.folder) / "run.log")
        assert len(blocks) == len(set(blocks))
