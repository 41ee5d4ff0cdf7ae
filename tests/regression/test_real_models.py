"""Real weights on real images: what was measured beforehand must come out again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.real_weights import MARKS, engine

pytestmark = MARKS


@pytest.fixture(scope="module")
def mobileone(reptrt_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Reports of MobileOne-S0 by calibrator."""
    workspace = tmp_path_factory.mktemp("mobileone")
    weights = "mobileone_s0_fused_imagenet1k.pth"
    return {
        calibrator: engine(workspace, reptrt_data, weights, "mobileone_s0", calibrator)
        for calibrator in ("mae", "minmax")
    }


def test_mobileone_s0_in_fp32_is_what_was_published(mobileone: dict[str, Any]) -> None:
    assert mobileone["mae"]["accuracy"]["num_images"] == 700
    assert mobileone["mae"]["accuracy"]["fp32"] == pytest.approx(78.9, abs=0.3)
    assert mobileone["minmax"]["accuracy"]["fp32"] == mobileone["mae"]["accuracy"]["fp32"]


def test_min_max_collapses_on_mobileone_s0_and_absolute_error_rescues_it(
    mobileone: dict[str, Any],
) -> None:
    assert mobileone["minmax"]["accuracy"]["quantized"] <= 25.0
    assert mobileone["mae"]["accuracy"]["quantized"] > 65.0


def test_every_convolution_and_linear_of_mobileone_s0_runs_in_int8(
    mobileone: dict[str, Any],
) -> None:
    assert mobileone["mae"]["fusion"]["int8_coverage"] == 100.0
    assert mobileone["mae"]["fusion"]["quantizable_layers"] > 20
    assert mobileone["mae"]["fusion"]["float_islands"] == []


def test_deit_tiny_loses_at_most_a_point_with_min_max(reptrt_data: Path, tmp_path: Path) -> None:
    weights, model = "deit_tiny_patch16_224_imagenet1k.pth", "timm:deit_tiny_patch16_224"
    report = engine(tmp_path, reptrt_data, weights, model, "minmax")
    assert report["accuracy"]["fp32"] == pytest.approx(79.4, abs=0.3)
    assert report["accuracy"]["drop"] <= 1.0


def test_repvgg_a0_from_its_train_form_runs_in_int8_throughout(
    reptrt_data: Path, tmp_path: Path
) -> None:
    weights = "repvgg_a0_imagenette.pth"
    report = engine(tmp_path, reptrt_data, weights, "repvgg_a0", "mae", images="imagenette")
    assert report["accuracy"]["fp32"] == pytest.approx(83.5, abs=0.3)
    assert report["accuracy"]["quantized"] > 70.0
    assert report["fusion"]["int8_coverage"] == 100.0
