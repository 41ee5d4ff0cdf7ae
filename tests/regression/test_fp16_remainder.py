"""FP16 for what is not INT8, on real weights: no FP32 kernel that need not be, and no accuracy lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from reptrt.engines.inspection.kernel_record import read_kernel_entry
from tests.command_line import reptrt
from tests.float_kernels import needless_float_kernels
from tests.real_weights import MARKS

pytestmark = MARKS

PRECISIONS = ("fp32", "fp16")


class Twins(NamedTuple):
    """Reports of one calibration exported twice, and the FP16 one's kernels."""

    fp32: dict[str, Any]
    fp16: dict[str, Any]
    needless: list[str]


@pytest.fixture(
    scope="module",
    params=[
        ("mobileone_s0", "mobileone_s0_fused_imagenet1k.pth", "mae"),
        ("timm:deit_tiny_patch16_224", "deit_tiny_patch16_224_imagenet1k.pth", "repq-vit"),
    ],
    ids=lambda case: case[2],
)
def twins(
    request: pytest.FixtureRequest, reptrt_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Twins:
    model, weights, calibrator = request.param
    root = tmp_path_factory.mktemp("twins")
    reports = {}
    for precision in PRECISIONS:  # in one workspace: the second run copies the calibration
        outcome = reptrt(
            "engine", model, "--calibrator", calibrator, "--num-samples", 32, "--json",
            "--weights", reptrt_data / "weights" / weights, "--precision", precision, "--quantize", "all",
            "--data", reptrt_data / "images" / "imagenet_calib", "--target", "tensorrt-rtx",
            "--eval", reptrt_data / "images" / "imagenet_val", "--workspace", root,
        )  # fmt: skip
        assert outcome.code == 0, outcome.err
        reports[precision] = json.loads(outcome.out)
    (fusion,) = root.rglob("*-fp16/*/fusion.json")
    kernels = [
        read_kernel_entry(entry) for entry in json.loads(fusion.read_text())["fused_kernels"]
    ]
    needless = needless_float_kernels(kernels, fusion.with_name("model.trt.onnx"))
    return Twins(reports["fp32"], reports["fp16"], needless)


def test_only_the_kernels_that_need_it_are_float(twins: Twins) -> None:
    assert twins.fp16["fusion"]["int8_coverage"] == 100.0
    assert twins.needless == []


def test_fp16_costs_at_most_a_tenth_of_a_point(twins: Twins) -> None:
    assert twins.fp16["accuracy"]["num_images"] == twins.fp32["accuracy"]["num_images"] == 700
    lost = twins.fp32["accuracy"]["quantized"] - twins.fp16["accuracy"]["quantized"]
    assert lost <= 0.1
