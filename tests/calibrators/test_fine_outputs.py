"""Where few layers are quantized and the outputs hardly notice, calibration stops at the first baseline that does it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import nn

from reptrt.calibrators.base import CalibrationResult
from reptrt.calibrators.feed import Batch
from reptrt.calibrators.histogram.best import BY_TENSOR, CANDIDATES, with_biases
from reptrt.calibrators.output_noise import FINE_DB, fine_noise
from reptrt.calibrators.progress import Progress, no_progress
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


def calibrate(
    name: str, times: float, effort: Effort = "auto", progress: Progress = no_progress
) -> CalibrationResult:
    torch.manual_seed(0)
    return calibrate_module(name, Small(times), effort, ["large"], progress)


def calibrate_module(
    name: str,
    module: nn.Module,
    effort: Effort = "auto",
    keep_float: Sequence[str] = (),
    progress: Progress = no_progress,
) -> CalibrationResult:
    images = smooth_images(32, seed=1)
    model = quantized(trace(module.eval(), images.shape[2:]), keep_float=keep_float)
    settings = Settings(0, Reconstruction(iterations=4), effort=effort)
    return create_calibrator(name, settings).calibrate(model, list(images.split(8)), progress)


@pytest.mark.parametrize("name", ["best", "repapq"])
def test_fine_outputs_need_a_baseline_and_no_more(name: str) -> None:
    result = calibrate(name, 100.0)
    assert set(result.compared) == BASELINES
    assert result.method in BASELINES
    assert max(result.compared.values()) >= FINE_DB
    assert result.blocks == ()


def test_the_report_says_why_nothing_was_learned() -> None:
    result = calibrate("repapq", 100.0)
    found = f"{result.method} has {result.compared[result.method]:.1f} dB"
    assert result.notes["Reconstruction"] == f"not needed: {found} at the outputs"


def test_progress_is_complete_where_nothing_was_learned() -> None:
    seen: list[tuple[int, int]] = []
    calibrate("repapq", 100.0, progress=lambda _, done, total: seen.append((done, total)))
    assert seen[-1] == (1000, 1000)


def test_high_effort_learns_all_the_same() -> None:
    assert [block.steps for block in calibrate("repapq", 100.0, "high").blocks] == [4]


@pytest.mark.parametrize("name", ["best", "repapq"])
def test_other_outputs_get_every_step(name: str) -> None:
    result = calibrate(name, 0.0)
    best = max(BASELINES | {BY_TENSOR}, key=lambda one: result.compared[one])
    assert BASELINES | {BY_TENSOR, with_biases(best)} <= set(result.compared)
    assert max(result.compared.values()) < FINE_DB
    assert len(result.blocks) == (name == "repapq")


class Offset(nn.Module):
    """Outputs that are large and the same for all images, but for little."""

    def __init__(self, offset: float) -> None:
        super().__init__()
        self.conv, self.offset = nn.Conv2d(3, 3, 3, padding=1), offset

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).relu() + self.offset


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_what_is_the_same_for_all_images_makes_no_output_fine(offset: float) -> None:
    torch.manual_seed(0)
    result = calibrate_module("best", Offset(offset))
    assert (max(result.compared.values()) >= FINE_DB) == (offset > 0)
    assert BY_TENSOR in result.compared


@pytest.mark.parametrize("name", ["best", "repapq"])
def test_outputs_that_never_vary_tell_nothing(name: str) -> None:
    module = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 3, 1))
    nn.init.zeros_(module[2].weight)
    result = calibrate_module(name, module)
    assert min(result.compared.values()) == math.inf
    assert BY_TENSOR in result.compared
    assert len(result.blocks) == (2 if name == "repapq" else 0)


def test_fine_noise_is_50_db_below_what_varies() -> None:
    images = list(smooth_images(12, seed=1).split(5))
    images = [image - torch.cat(images).mean(0) for image in images]
    constant, power = torch.ones(3, 1, 1), float(torch.cat(images).square().mean())
    model = quantized(trace(Small(1.0).eval(), images[0].shape[2:]), keep_float=["large"])

    def shifted(batch: Batch) -> tuple[torch.Tensor, ...]:
        assert isinstance(batch, torch.Tensor)
        return (batch + constant,)

    assert fine_noise(model, images, shifted) == pytest.approx(1e-5 * power / (1 + power))


def test_outputs_of_different_sizes_are_never_fine() -> None:
    images = list(smooth_images(12, seed=1).split(5))
    model = quantized(trace(Small(1.0).eval(), images[0].shape[2:]), keep_float=["large"])

    def turned(batch: Batch) -> tuple[torch.Tensor, ...]:
        assert isinstance(batch, torch.Tensor)
        return (batch.movedim(0, 1),)

    assert fine_noise(model, images, turned) == 0.0
