"""Layers with their type, error, time and bytes."""

from __future__ import annotations

import json
from dataclasses import replace

from reptrt.engines.histogram_record import Histogram, LayerHistograms
from reptrt.engines.inspection.kernel import Kernel, Product, Tensor
from reptrt.engines.report_schema import FloatIsland, Fusion, LayerSnr
from reptrt.pipeline.report.layer_table import describe, layer_rows
from reptrt.pipeline.report.next_steps import next_steps
from tests.reports import make_report

CONV = Kernel(
    "conv", "correlation", (Tensor("x", "Int8", (-1, 64, 56, 56)),),
    (Tensor("w", "Int8", (64, 64, 3, 3)),), (Tensor("y", "Int8", (-1, 64, 56, 56)),), ("one", "two"),
    product=Product(rows=3136, columns=64, depth=576, groups=1, window=(3, 3), stride=(1, 1)),
)  # fmt: skip


def report(target: str = "rtx-40", **values: object):
    return make_report(**{
        "target": target, "precision": "fp16",
        "layers": (LayerSnr("one", "Conv", 40.0), LayerSnr("two", "Conv", 30.0), LayerSnr("three", "Gemm")),
        "fusion": Fusion(int8_layers=2, quantizable_layers=3, int8_coverage=66.7, kernels=1,
                         float_islands=(FloatIsland("three", "Gemm", "it is the last"),)),
        **values,
    })  # fmt: skip


def test_a_kernel_is_shared_by_its_layers() -> None:
    one, two, three = layer_rows(report(), [CONV])
    assert (one.runs, two.runs, three.runs) == ("INT8", "INT8", "FP16")
    assert one.microseconds == two.microseconds > 0
    # 2 x 64 x 56 x 56 activations and 64 x 64 x 9 weights of a byte, half for each layer
    assert abs(one.megabytes - (2 * 64 * 56 * 56 + 64 * 64 * 9) / 2e6) < 1e-3
    assert (three.microseconds, three.reason) == (None, "it is the last")
    assert (one.snr_db, three.snr_db) == (40.0, None)


def test_a_kernel_without_shapes_leaves_only_its_own_layers_without_a_price() -> None:
    shapeless = (Tensor("y", "Half"),)
    other = replace(CONV, name="other", inputs=shapeless, outputs=shapeless, onnx_layers=("two",))
    one, two, _ = layer_rows(report(), [replace(CONV, onnx_layers=("one",)), other])
    assert one.microseconds is not None
    assert two.microseconds is None


def test_without_a_data_sheet_or_kernels_there_is_no_time() -> None:
    for found in (layer_rows(report("cpu"), [CONV]), layer_rows(report(), [])):
        assert {row.microseconds for row in found} == {None}


def test_without_an_engine_nothing_is_said_of_types() -> None:
    assert {row.runs for row in layer_rows(report(fusion=None), [])} == {""}


def test_next_steps_are_those_of_the_target() -> None:
    classic, cpu = ([line for _, line in next_steps(report(name))] for name in ("server-l4", "cpu"))
    assert any(line.startswith("trtexec --loadEngine=") for line in classic)
    assert not any("trtexec" in line or "polygraphy" in line for line in cpu)
    assert "reptrt triton 'a b' --target cpu --output models" in [
        line for _, line in next_steps(report("cpu", model="a b"))
    ]


def test_the_folder_of_a_run_stands_for_its_model_where_it_can() -> None:
    typed = "reptrt engine x --data images"
    for model, stated in (("timm:resnet18", "."), ("net.onnx", "."), ("nets:build", "nets:build")):
        lines = [line for _, line in next_steps(report("cpu", model=model, command=typed))]
        assert f"reptrt triton {stated} --target cpu --output models" in lines
    (line,) = (
        line
        for _, line in next_steps(report("cpu", model="Net", command="reptrt.quantize(Net)"))
        if "triton" in line
    )
    assert "triton Net " in line


def test_a_layer_carries_its_histograms_and_kernels_for_the_page() -> None:
    histogram = Histogram(-1.0, 1.0, (3, 4))
    found = LayerHistograms(histogram, 0.5, (-1.0, 0.5), 2.0, histogram, (-1.5, 0.75), (4, 6))
    one, two, three = layer_rows(report(), [CONV], {"one": found})
    detail = json.loads(one.detail)
    assert detail["activation"] == {"low": -1.0, "high": 1.0, "counts": [3, 4]}
    assert (detail["grid"], detail["kernels"]) == ([-1.0, 0.5], ["conv"])
    assert (detail["start"], one.bits, two.bits) == ([-1.5, 0.75], "w4a6", "")
    assert "runs in INT8 w4a6" in describe(one)
    assert json.loads(two.detail) == {"kernels": ["conv"]}
    assert json.loads(three.detail) == {"kernels": []}
    assert {row.detail for row in layer_rows(report(), [])} == {""}
