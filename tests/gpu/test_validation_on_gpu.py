"""A whole run on this machine's GPU: the engine is proved, raced against FP16, and one is named."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from reptrt.engines.device import find_gpu
from reptrt.engines.target import TARGETS
from tests.command_line import TinyProject, reptrt

pytestmark = pytest.mark.skipif(find_gpu() is None, reason="no NVIDIA GPU on this machine")


@pytest.mark.parametrize(
    "options", [(), ("--max-batch", 2), ("--version-compatible",)], ids=["plain", "batch", "compatible"]
)  # fmt: skip
def test_the_engine_agrees_with_its_graph_and_one_engine_is_chosen(
    tiny: TinyProject, tmp_path: Path, options: tuple[object, ...]
) -> None:
    gpu, target = find_gpu(), TARGETS["tensorrt" if find_spec("tensorrt") else "tensorrt-rtx"]
    assert gpu is not None
    if target.compute_capabilities and gpu.compute_capability not in target.compute_capabilities:
        pytest.skip(f"{target.name} does not serve {gpu.name}, and TensorRT is not installed")
    if "--version-compatible" in options and target.backend != "tensorrt":
        pytest.skip("TensorRT-RTX engines are not version compatible")
    chosen = (*tiny.options[:-1], target.name, *options)
    outcome = reptrt(
        "engine", *chosen, "--eval", tiny.photos, "--workspace", tmp_path, "--json"
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)
    assert report["latency_ms"]["backend"].startswith(target.backend)
    assert report["engine_numerics"]["logits"]["snr_db"] >= 30
    assert report["fp16_numerics"]["logits"]["snr_db"] >= 40
    alone, whole = report["latency_ms"]["device_only"], report["latency_ms"]
    for name in ("fp16", "quantized"):
        assert 0 < alone[name]["p50"] < whole[name]["p50"]
    assert report["deploy"] in ("int8", "fp16")
    assert "than FP16" in report["deploy_reason"]
    files = {path.name for path in tmp_path.rglob("model.fp16*")}
    assert files == {"model.fp16.onnx", "model.fp16.engine"}
