"""RepQ-ViT and RepQuant on DeiT-Tiny's real weights: what docs/results.md claims, for one seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import numpy_helper

from tests.real_weights import MARKS, engine

pytestmark = MARKS

WEIGHTS, MODEL = "deit_tiny_patch16_224_imagenet1k.pth", "timm:deit_tiny_patch16_224"


def run(tmp_path: Path, data: Path, calibrator: str, bits: int) -> dict[str, Any]:
    return engine(tmp_path, data, WEIGHTS, MODEL, calibrator, bits=bits)


def test_at_8_bits_auto_keeps_the_accuracy_in_a_symmetric_graph(
    reptrt_data: Path, tmp_path: Path
) -> None:
    report = run(tmp_path, reptrt_data, "auto", 8)
    assert report["calibrator"] == "repq-vit"
    assert report["accuracy"]["drop"] <= 0.3
    assert report["accuracy"]["agreement"] >= 97.0
    assert report["fusion"]["int8_coverage"] == 100.0
    assert report["fusion"]["fused_attention"] == report["fusion"]["attention_blocks"] == 12
    assert report["peak_rss_mb"] <= 4096
    (path,) = tmp_path.rglob("model.trt.onnx")
    graph = onnx.load(path).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    linears = [n for n in graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert linears
    assert not any(constants[node.input[2]].any() for node in linears)


@pytest.mark.parametrize(("calibrator", "max_drop"), [("repq-vit", 1.0), ("repquant", 0.8)])
def test_at_6_bits_little_is_lost(
    reptrt_data: Path, tmp_path: Path, calibrator: str, max_drop: float
) -> None:
    report = run(tmp_path, reptrt_data, calibrator, 6)
    assert report["accuracy"]["drop"] <= max_drop
    assert report["fusion"]["int8_coverage"] == 100.0


@pytest.mark.xfail(strict=True, reason="gains 5.0 points so far (docs/results.md)")
def test_at_4_bits_learning_gains_6_points(reptrt_data: Path, tmp_path: Path) -> None:
    found = {
        name: run(tmp_path, reptrt_data, name, 4)["accuracy"]["quantized"]
        for name in ("repq-vit", "repquant")
    }
    assert found["repquant"] >= found["repq-vit"] + 6.0
