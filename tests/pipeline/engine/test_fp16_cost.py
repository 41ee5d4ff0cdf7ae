"""INT8 and FP16 of one network, costed without a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from reptrt.engines.surgery import clean
from reptrt.engines.target import TARGETS
from reptrt.models.card import ModelCard
from reptrt.models.spec import Preprocess
from reptrt.pipeline.engine.fp16_cost import compare_with_fp16
from reptrt.pipeline.export.export import export_qdq
from tests.tiny_networks import SIZE, calibrated, traced

CARD = ModelCard(
    "m",
    "classification",
    Preprocess((SIZE, SIZE), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)),
    4,
    None,
    ("y",),
)


@pytest.fixture(scope="module")
def int8_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rival")
    export_qdq(calibrated("plain"), folder / "qdq.onnx", CARD, precision="fp16")
    clean(folder / "qdq.onnx", folder / "trt.onnx")
    return folder / "trt.onnx"


@pytest.mark.parametrize("target", ["server-t4", "rtx-40"])
def test_both_engines_are_costed_at_the_same_batch(int8_onnx: Path, target: str) -> None:
    if target == "rtx-40":
        pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed here")
    found = compare_with_fp16(int8_onnx, traced("plain"), CARD, TARGETS[target], batch=8)
    assert found is not None
    assert found.batch == 8
    assert found.int8.traffic.gigaoperations["Int8"] > 0
    assert "Int8" not in found.fp16.traffic.gigaoperations
    assert found.int8.traffic.weight_megabytes < found.fp16.traffic.weight_megabytes
    assert found.gpu == TARGETS[target].data_sheet.gpu


def test_a_target_without_a_gpu_has_no_comparison(int8_onnx: Path) -> None:
    assert compare_with_fp16(int8_onnx, traced("plain"), CARD, TARGETS["cpu"]) is None
