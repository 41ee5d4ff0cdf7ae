"""What a calibration spares: a second placement by cost, and itself where no layer is quantized."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reptrt.calibrators.state import read_result
from tests.command_line import TinyProject, reptrt


def calibrate(tiny: TinyProject, workspace: Path, *options: str) -> None:
    outcome = reptrt("calibrate", *tiny.options, *options, "--workspace", workspace)
    assert outcome.code == 0, outcome.err


def test_nothing_is_calibrated_where_no_layer_is_quantized(
    tiny: TinyProject, tmp_path: Path
) -> None:
    calibrate(tiny, tmp_path, "--keep-float", "*")
    assert read_result(tiny.files_of(tmp_path) / "calibration.safetensors").method == "none"


def test_layers_are_placed_once_for_all_calibrators(tiny: TinyProject, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    for calibrator in ("minmax", "mae"):
        calibrate(tiny, tmp_path, "--quantize", "pays", "--calibrator", calibrator)
    records = json.loads((tiny.files_of(tmp_path, "mae-w8a8") / "run.json").read_text())["stages"]
    assert records["placement"]["copied_from"] == str(tiny.files_of(tmp_path))
