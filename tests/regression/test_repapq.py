"""RepAPQ on real weights: what docs/results.md claims, for one seed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.real_weights import MARKS, engine

pytestmark = MARKS

MOBILEONE = ("mobileone_s0_fused_imagenet1k.pth", "mobileone_s0", "imagenet")
REPVGG = ("repvgg_a0_imagenette.pth", "repvgg_a0", "imagenette")


@pytest.mark.parametrize(
    ("network", "bits", "max_drop"),
    [(MOBILEONE, 8, 0.5), (MOBILEONE, 6, 2.0), (REPVGG, 8, 0.5), (REPVGG, 6, 2.0)],
    ids=["mobileone-w8a8", "mobileone-w6a6", "repvgg-w8a8", "repvgg-w6a6"],
)
def test_repapq_keeps_the_accuracy_of_fp32(
    reptrt_data: Path,
    tmp_path: Path,
    network: tuple[str, str, str],
    bits: int,
    max_drop: float,
) -> None:
    weights, model, images = network
    report = engine(tmp_path, reptrt_data, weights, model, "auto", images, bits)
    assert report["calibrator"] == "repapq"
    assert report["num_samples"] == 256
    assert report["accuracy"]["drop"] <= max_drop
    assert report["fusion"]["int8_coverage"] == 100.0
    assert report["blocks"]


def test_repapq_adds_no_kernel_to_a_min_max_engine(reptrt_data: Path, tmp_path: Path) -> None:
    weights, model, images = REPVGG
    kernels = {
        calibrator: engine(tmp_path, reptrt_data, weights, model, calibrator, images)["fusion"][
            "kernels"
        ]
        for calibrator in ("minmax", "repapq")
    }
    assert kernels["repapq"] == kernels["minmax"]
