"""What is not INT8 is FP16 in the engine too: TensorRT-RTX names the types of every kernel."""

from __future__ import annotations

from pathlib import Path

import pytest

from reptrt.engines.build.builder import build_engine
from reptrt.engines.inspection.fusion import fusion_report
from reptrt.engines.inspection.kernels import Kernel, parse_kernels
from reptrt.engines.surgery import clean
from reptrt.engines.target import TARGETS, load_backend
from reptrt.models.card import ModelCard
from reptrt.models.spec import Preprocess
from reptrt.pipeline.engine.fp16_engine import write_fp16_onnx
from reptrt.pipeline.export.export import Precision, export_qdq
from tests.float_kernels import needless_float_kernels
from tests.tiny_networks import SIZE, calibrated, traced

TARGET = TARGETS["tensorrt-rtx"]


def card(name: str) -> ModelCard:
    preprocess = Preprocess((SIZE, SIZE), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    if name == "detector":
        return ModelCard(name, "detection", preprocess, 3, None, ("p1", "p2"), (2, 4))
    return ModelCard(name, "classification", preprocess, 10, None, ("logits",))


def kernels_of(path: Path) -> tuple[Kernel, ...]:
    pytest.importorskip("tensorrt_rtx")
    built = build_engine(path, path.with_suffix(".engine"), load_backend(TARGET))
    return parse_kernels(built.layers)


def typed(folder: Path, name: str, precision: Precision) -> Path:
    exported, path = folder / "qdq.onnx", folder / "trt.onnx"
    export_qdq(calibrated(name, (8, 8), 1), exported, card(name), 1, precision=precision)
    clean(exported, path)
    return path


@pytest.mark.parametrize("name", ["plain", "residual", "detector", "swin"])
def test_no_kernel_is_float_that_need_not_be(tmp_path: Path, name: str) -> None:
    path = typed(tmp_path, name, "fp16")
    kernels = kernels_of(path)
    assert fusion_report(kernels, path).int8_layers > 0
    assert needless_float_kernels(kernels, path) == []


@pytest.mark.parametrize("name", ["residual", "vit"])
def test_the_float_remainder_of_the_fp32_twin_is_seen(tmp_path: Path, name: str) -> None:
    path = typed(tmp_path, name, "fp32")
    assert needless_float_kernels(kernels_of(path), path)


@pytest.mark.parametrize("name", ["detector", "vit"])
def test_the_fp16_engine_has_no_float_kernel_either(tmp_path: Path, name: str) -> None:
    path = tmp_path / "fp16.onnx"
    write_fp16_onnx(traced(name), card(name), path)
    kernels = kernels_of(path)
    assert {tensor.dtype for kernel in kernels for tensor in kernel.inputs} >= {"Half"}
    assert needless_float_kernels(kernels, path) == []
