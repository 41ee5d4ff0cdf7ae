"""A build kit on this machine's GPU: the engine runs before it is installed."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from reptrt.engines.device import find_gpu
from tests.engines.kit.test_archive import build, installed, make_kit, unpack

pytestmark = [
    pytest.mark.skipif(find_gpu() is None, reason="no NVIDIA GPU on this machine"),
    pytest.mark.skipif(find_spec("tensorrt") is None, reason="TensorRT is not installed"),
]


def test_an_engine_is_installed_and_served_after_it_ran(tmp_path: Path):
    kit = unpack(make_kit(tmp_path, "tensorrt"), tmp_path / "device")
    outcome = build(kit, "--seconds", "0.1", "--triton", "models")
    assert outcome.returncode == 0, outcome.stderr
    assert "tiny.engine" in installed(kit)
    report = json.loads((kit.parent / "engines" / "report.json").read_text())
    assert report["verification"]["ran"] == "engine"
    latency = report["latency_ms"]
    assert 0 < latency["device_only"]["quantized"]["p50"] <= latency["quantized"]["p50"]
    assert (kit.parent / "models" / "tiny" / "1" / "model.plan").stat().st_size > 0
