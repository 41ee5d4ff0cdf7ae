"""The stored constants on engines that others measured; their fit is `benchmarks/fit_cost.py`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reptrt.engines.cost.device_info import read_device_info
from reptrt.engines.cost.estimate import estimate_cost
from reptrt.engines.inspection.kernels import parse_kernels

RESNET = "a100_resnet18_b32_"


def predicted_and_measured(folder: Path) -> tuple[float, float]:
    metadata = folder / "profile.metadata.json"
    kernels = parse_kernels((folder / "graph.json").read_text())
    runs = json.loads(metadata.read_text())["performance_summary"]["GPU Compute Time"]
    cost = estimate_cost(kernels, read_device_info(metadata))
    return cost.milliseconds, sorted(runs)[len(runs) // 2]


@pytest.fixture(scope="module")
def times(reptrt_data: Path) -> dict[str, tuple[float, float]]:
    folders = [path.parent for path in (reptrt_data / "engines").glob("*/graph.json")]
    assert folders
    return {folder.name: predicted_and_measured(folder) for folder in folders}


def test_every_engine_is_predicted_within_30_percent(times):
    for name, (predicted, measured) in times.items():
        assert predicted == pytest.approx(measured, rel=0.3), name


@pytest.mark.parametrize("placement", ["int8_conv_inputs", "int8_skips"])
def test_int8_over_fp16_is_predicted_within_20_percent(times, placement):
    int8, fp16 = times[RESNET + placement], times[RESNET + "fp16"]
    assert int8[0] / fp16[0] == pytest.approx(int8[1] / fp16[1], rel=0.2)


def test_placements_of_one_network_are_in_the_right_order(times):
    names = [RESNET + name for name in ("int8_skips", "fp16", "int8_conv_inputs", "fp32")]
    for side in (0, 1):  # predicted, measured
        assert sorted(names, key=lambda name: times[name][side]) == names


def test_real_engines_move_the_bytes_that_their_layouts_pad(reptrt_data):
    text = (reptrt_data / "engines" / f"{RESNET}fp16" / "graph.json").read_text()
    reformat, convolution = parse_kernels(text)[:2]
    assert reformat.bytes_out == 32 * 4 * 224 * 224 * 2  # 3 channels in "channel % 4 == 0"
    assert convolution.operations == 2 * 32 * 64 * 112 * 112 * 147
