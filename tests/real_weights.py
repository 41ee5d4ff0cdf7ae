"""Whole runs on real weights and images, for the regression tests."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.command_line import reptrt

MARKS = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.environ.get("REPTRT_REGRESSION") != "1",
        reason="takes minutes: set REPTRT_REGRESSION=1 (make regress)",
    ),
]


def engine(
    workspace: Path,
    data: Path,
    weights: str,
    model: str,
    calibrator: str,
    images: str = "imagenet",
    bits: int = 8,
) -> dict[str, Any]:
    """Report of a run in which every layer is INT8, on `<images>_val`, which fails when real data is missing."""
    calibration = "imagenet_calib" if images == "imagenet" else "imagenette_train"
    outcome = reptrt(
        "engine", model, "--calibrator", calibrator, "--workspace", workspace, "--json",
        "--quantize", "all",
        "--weights", data / "weights" / weights,
        "--weight-bits", bits, "--activation-bits", bits,
        "--data", data / "images" / calibration,
        "--eval", data / "images" / f"{images}_val",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    report: dict[str, Any] = json.loads(outcome.out)
    return report
