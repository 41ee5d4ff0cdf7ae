"""A sweep whose workspace is an object store is killed, at its worst moments: the same command goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.command_line import TinyProject

pytestmark = pytest.mark.skipif(
    "REPTRT_REGRESSION" not in os.environ, reason="takes minutes: set REPTRT_REGRESSION=1"
)

COMMAND = """
import sys

from reptrt.pipeline.cli.main import main
from reptrt.pipeline.sweep import store

store.SEND_SECONDS = 0.05
sys.argv[0] = "reptrt"
main()
"""
SECONDS = 300


def blocks(store: Path) -> set[str]:
    """Blocks that are finished and sent, of the cell that is at work."""
    return {
        path.name
        for path in store.glob("runs/*/*/*/*/calibrate.unfinished/*/*")
        if path.name[0] != "."
    }


def results(store: Path) -> int:
    return len(list(store.glob("cells/*/result.json")))


def start(file: Path, store: Path) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-c",
        COMMAND,
        "sweep",
        str(file),
        "--workspace",
        f"file://{store}",
        "--json",
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(file: Path, store: Path) -> list[dict[str, Any]]:
    process = start(file, store)
    out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, err
    rows: list[dict[str, Any]] = json.loads(out)
    return rows


def kill_when(is_time: Callable[[], bool], file: Path, store: Path) -> None:
    """SIGKILL the sweep, and with it its cell, as soon as `is_time`."""
    process = start(file, store)
    until = time.monotonic() + SECONDS
    while not is_time():
        assert process.poll() is None, "it ended before its moment came"
        assert time.monotonic() < until
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def test_a_sweep_in_a_store_that_is_killed_goes_on_and_finds_the_same(
    tiny: TinyProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path.cwd()), str(tiny.folder)]))
    content = {
        "base": {"model": "tiny_models:branches", "data": str(tiny.data), "evaluation": str(tiny.photos),
                 "image_size": [32, 32], "target": "cpu", "num_samples": 8, "effort": "high"},
        "grid": {"calibrator": ["brecq", "minmax"], "bits": [6, 8]},
    }  # fmt: skip
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump(content))
    alone, store = tmp_path / "alone", tmp_path / "store"
    expected = finish(file, alone)
    assert [row["status"] for row in expected] == ["done"] * 4

    kill_when(lambda: len(blocks(store)) >= 2, file, store)
    kept = blocks(store)
    kill_when(lambda: results(store) >= 1, file, store)
    (log,) = store.glob("runs/*/*/brecq-w6a6*/*/run.log")
    learned = [line for line in log.read_text().splitlines() if ": block " in line]
    assert len(kept) >= 2
    assert len(learned) == len({line.partition(": block ")[2][:8] for line in learned})

    kill_when(lambda: bool(list(store.glob("runs/*/*/brecq-w8a8*/*/scales.json"))), file, store)
    kill_when(lambda: results(store) >= 3, file, store)
    found = finish(file, store)
    assert [row["status"] for row in found] == ["done"] * 4
    for one, other in zip(expected, found, strict=True):
        for name in ("cell", "accuracy", "fp32", "drop", "agreement", "snr_db"):
            assert one[name] == other[name], name
        for name in ("scales.json", "model.trt.onnx"):
            paths = [Path(row["folder"].removeprefix("file://"), name) for row in (one, other)]
            assert paths[0].read_bytes() == paths[1].read_bytes(), name
    assert not [
        path for path in store.rglob("*") if "unfinished" in path.name and not path.is_dir()
    ]
