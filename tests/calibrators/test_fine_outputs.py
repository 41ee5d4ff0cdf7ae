"""Where few layers are quantized and the outputs hardly notice, calibration stops at the first baseline that does it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from reptrt.calibrators.base import CalibrationResult
from reptrt.calibrators.histogram.best import BY_TENSOR, CANDIDATES, with_biases
from reptrt.calibrators.output_noise import FINE_DB
from reptrt.calibrators.registry import create_calibrator
from reptrt.calibrators.settings import Effort, Reconstruction, Settings
from reptrt.models.graph import trace
from tests.tiny_networks import quantized, smooth_images

BASELINES = {candidate.name for candidate in CANDIDATES}


class Small(nn.Module):
    """A convolution beside one that is to stay float, whose output is `times` as large."""

    def __init__(self, times: float) -> None:
        super().__init__()
        self.conv, self.large = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.times = times

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).relu() + self.times * self.large(x).relu()


def calibrate(name: str, times: float, effort: Effort = "auto") -> CalibrationResult:
    torch.manual_seed(0)
    images = smooth_images(32, seed=1)
    graph_module = trace(Small(times).eval(), images.shape[2:])
    model = quantized(graph_module, keep_float=["large"])
    settings = Settings(0, Reconstruction(iterations=4), effort=effort)
    return create_calibrator(name, settings).calibrate(model, list(images.split(8)))


@pytest.mark.parametrize("name", ["best", "repapq"])
def test_fine_outputs_need_a_baseline_and_no_more(name: str) -> None:
    result = calibrate(name, 100.0)
    assert set(result.compared) == BASELINES
    assert result.method in BASELINES
    assert max(result.compared.values()) >= FINE_DB
    assert result.blocks == ()


def test_the_report_says_why_nothing_was_learned() -> None:
    result = calibrate("repapq", 100.0)
    why = result.notes["Reconstruction"]
    assert why.startswith("not needed")
    assert f"{result.method} {result.compared[result.method]:.1f} dB" in why


def test_high_effort_learns_all_the_same() -> None:
    assert [block.steps for block in calibrate("repapq", 100.0, "high").blocks] == [4]


@pytest.mark.parametrize("name", ["best", "repapq"])
def test_other_outputs_get_every_step(name: str) -> None:
    result = calibrate(name, 0.0)
    best = max(BASELINES | {BY_TENSOR}, key=lambda one: result.compared[one])
    assert BASELINES | {BY_TENSOR, with_biases(best)} <= set(result.compared)
    assert max(result.compared.values()) < FINE_DB
    assert len(result.blocks) == (name == "repapq")
