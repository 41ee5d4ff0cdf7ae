"""Peaks that follow from SMs, clock and rates, beside the dense TFLOPS and TOPS of NVIDIA's data sheets."""

from __future__ import annotations

import pytest

from reptrt.engines import data_sheet as sheets
from reptrt.engines.data_sheet import DataSheet, known_sheets
from reptrt.engines.target import TARGETS


@pytest.mark.parametrize(
    ("sheet", "half", "int8"),
    [
        (sheets.V100, 125, 62), (sheets.T4, 65, 130), (sheets.A100, 312, 624),
        (sheets.A10, 125, 250), (sheets.L4, 121, 242), (sheets.L40S, 362, 733),
        (sheets.H100, 989, 1979), (sheets.H200, 989, 1979), (sheets.B200, 2250, 4500),
        (sheets.RTX_3080, 119, 238), (sheets.RTX_4080, 195, 390), (sheets.RTX_5080, 225, 450),
        (sheets.AGX_ORIN, 42.5, 85), (sheets.THOR, 258, 517),
    ],
    ids=lambda value: value.gpu if isinstance(value, DataSheet) else "",
)  # fmt: skip
def test_a_peak_is_that_of_the_data_sheet(sheet, half, int8):
    assert sheet.peak("Half") / 1e12 == pytest.approx(half, rel=0.02)
    assert sheet.peak("Int8") / 1e12 == pytest.approx(int8, rel=0.02)


def test_fp32_is_computed_on_tensor_cores_from_ampere_on():
    assert sheets.A100.peak("Float") / 1e12 == pytest.approx(156, rel=0.01)  # TF32
    assert sheets.T4.peak("Float") == sheets.T4.core_peak
    assert sheets.T4.core_peak / 1e12 == pytest.approx(8.1, rel=0.01)


def test_8_bit_floats_run_as_fp16_where_there_are_no_cores_for_them():
    assert sheets.A100.peak("FP8") == sheets.A100.peak("Half")
    assert sheets.H100.peak("FP8") == 2 * sheets.H100.peak("Half")


def test_every_target_that_is_one_kind_of_gpu_has_a_data_sheet_of_its_capability():
    for target in TARGETS.values():
        sheet = target.data_sheet
        if sheet is None:
            assert target.name in ("cpu", "tensorrt")
            continue
        assert sheet.compute_capability in target.compute_capabilities
        assert sheet.source
    assert {target.data_sheet for target in TARGETS.values()} - {None} <= set(known_sheets())
