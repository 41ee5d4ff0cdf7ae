"""Outputs that INT8 does not hold: the run tries what helps, and says what is still too far off."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import reptrt
from reptrt.calibrators.base import CalibrationResult
from reptrt.calibrators.histogram.methods import MinMaxCalibrator
from reptrt.calibrators.output_noise import BACKGROUND, decibel, worst_noise
from reptrt.calibrators.quantized.run_nodes import float_copy
from reptrt.engines.report_schema import Accuracy, OutputNumerics, Shortfall, Validation, Verdict
from reptrt.models.spec import Task
from reptrt.pipeline.choose_scales import is_close_enough
from reptrt.pipeline.plan import Plan, aimed_snr
from reptrt.pipeline.recipe import Recipe
from reptrt.pipeline.report.recommendation import choose_deployment
from reptrt.pipeline.report.summary import numerics_rows
from reptrt.pipeline.validation.shortfall import find_shortfall
from tests.calibrators.test_sensitivity import OneWideChannel, quantized
from tests.pipeline.report.test_recommendation import report
from tests.reports import make_report
from tests.tiny_networks import SIZE, randomize, smooth_images

IMAGES = smooth_images(16, seed=1).numpy()


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("low")


def quantize(workspace: Path, **options: object) -> reptrt.Result:
    known = {
        "calibrator": "minmax",
        "image_size": (SIZE, SIZE),
        "target": "cpu",
        "channel_scaling": "none",
    }
    return reptrt.quantize(
        OneWideChannel(), IMAGES, workspace=workspace, progress=False,
        **{**known, "quantize_head": True, **options},
    )  # fmt: skip


def worst(result: reptrt.Result) -> float:
    return min(output.snr_db or np.inf for output in (result.report.numerics or {}).values())


def test_layers_stay_float_until_the_worst_output_is_close_enough(
    workspace: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        result = quantize(workspace)
    assert "leaving layers float" in caplog.text
    assert worst(result) > 20
    assert result.verdict.shortfall is None
    assert list(json.loads(result.workspace.sensitivity.read_text())["layers"]) == ["sensitive"]
    caplog.clear()
    with caplog.at_level(logging.INFO):
        quantize(workspace)
    assert "sensitivity: fresh, skipped" in caplog.text
    assert "calibrate: fresh, skipped" in caplog.text


def test_what_still_falls_short_is_the_first_line_with_the_command_to_run_next(
    tmp_path: Path,
) -> None:
    result = quantize(tmp_path, min_snr=0.0)
    short = result.verdict.shortfall
    assert short is not None
    assert short.snr_db == worst(result) < short.bound == 12
    first = repr(result).splitlines()[0]
    assert first.startswith("Low quality: output output0 has")
    assert "`min_snr=12.0`" in " ".join(repr(result).split())
    assert "Low quality: output output0" in result.page.read_text()


@pytest.mark.parametrize("calibrator", ["minmax", "best"])
def test_the_float_engine_that_is_the_last_remedy_can_be_made(
    calibrator: str, tmp_path: Path
) -> None:
    result = quantize(tmp_path, keep_float=("*",), calibrator=calibrator)
    assert result.verdict.shortfall is None
    assert worst(result) > 60


class Background(nn.Module):
    """A map of scores that stay near 0, as a text detector's on pictures without text, and the map before."""

    def __init__(self, bias: float) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 1, 1)
        randomize(self)
        with torch.no_grad():
            self.last.bias.fill_(bias)  # type: ignore[union-attr]

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.first(x)
        return self.last(hidden.relu()).sigmoid(), hidden


@pytest.mark.parametrize("bias", [-14.0, 0.0])
@torch.no_grad()
def test_noise_is_that_of_the_worst_output_and_scores_near_zero_have_a_floor(bias: float) -> None:
    model = quantized(Background(bias), {})
    reference = float_copy(model)
    images = torch.from_numpy(IMAGES)
    MinMaxCalibrator().calibrate(model, [images])
    for quantizer in model.activation_quantizers.values():
        quantizer.scale *= 4
    noise = worst_noise(model, [images], reference)
    expected = reference(images)
    power = [float((a - b).square().mean()) for a, b in zip(model(images), expected, strict=True)]
    signal = [float(tensor.square().mean()) for tensor in expected]
    assert (signal[0] < BACKGROUND**2) == (bias < 0)
    wanted = max(power[0] / max(signal[0], BACKGROUND**2), power[1] / signal[1])
    assert noise == pytest.approx(wanted, rel=1e-3)


@torch.no_grad()
def test_noise_is_the_mean_over_batches_in_decibels_as_in_validation() -> None:
    model = quantized(Background(0.0), {})
    reference = float_copy(model)
    first, second = torch.from_numpy(IMAGES[:1]), torch.from_numpy(IMAGES[1:2]) * 0.1
    MinMaxCalibrator().calibrate(model, [first, second])
    alone = [decibel(worst_noise(model, [sample], reference)) for sample in (first, second)]
    assert alone[0] > alone[1] + 3
    both = decibel(worst_noise(model, [first, second], reference))
    assert both == pytest.approx(sum(alone) / 2, abs=0.1)


def plan(**choices: object) -> tuple[Recipe, Plan]:
    recipe = Recipe(model="net.onnx", **choices)  # type: ignore[arg-type]
    made = {
        "calibrator": "repapq", "num_samples": 256, "device": "cpu", "precision": "fp16",
        "quantize_head": False, "min_snr": 20.0, "least_snr": 12.0,
    }  # fmt: skip
    stated = {key: value for key, value in choices.items() if value not in (None, "auto")}
    return recipe, Plan.model_validate({**dict(recipe), **made, **stated})


def shortfall(numerics: dict[str, OutputNumerics], **choices: object) -> Shortfall | None:
    found = Validation(numerics=numerics)
    return find_shortfall(found, *plan(**choices), "reptrt engine net.onnx --data photos")


GOOD, BAD = OutputNumerics(30.0, 0.99), OutputNumerics(7.0, 0.9)


@pytest.mark.parametrize(
    ("choices", "remedy"),
    [
        ({"calibrator": "minmax"}, "--calibrator auto"),
        ({"min_snr": 0.0, "calibrator": "minmax"}, "--min-snr 12.0"),
        ({"num_samples": 16}, "--num-samples 256"),
        ({}, "--keep-float '*'`, which makes the FP16 engine"),
    ],
)
def test_the_command_is_what_was_not_tried_yet(choices: dict[str, object], remedy: str) -> None:
    short = shortfall({"boxes": GOOD, "scores": BAD, "more": OutputNumerics(9.0)}, **choices)
    assert short is not None
    assert (short.output, short.snr_db, short.num_short, short.num_outputs) == ("scores", 7.0, 2, 3)
    assert short.remedy.startswith("run `reptrt engine net.onnx --data photos --")
    assert remedy in short.remedy


def test_a_file_that_is_quantized_already_is_quantized_anew_from_its_float_weights() -> None:
    recipe, usual = plan()
    as_it_is = usual.model_copy(update={"is_quantized": True, "calibrator": "none"})
    found, command = Validation(numerics={"scores": BAD}), "reptrt engine net.onnx --data photos"
    short = find_shortfall(found, recipe, as_it_is, command)
    assert short is not None
    assert short.remedy == f"run `{command} --requantize`"


def test_images_that_show_nothing_known_are_told_by_their_background() -> None:
    short = shortfall({"scores": OutputNumerics(7.0, 0.9, 0.02, 0.03, is_background=True)})
    assert short is not None
    assert short.remedy.startswith("output scores never leaves its background")
    plain = shortfall({"scores": BAD})
    assert plain is not None
    assert "background" not in plain.remedy


@pytest.mark.parametrize(
    ("task", "choices", "aimed"),
    [
        ("generic", {"calibrator": "minmax"}, 20),
        ("segmentation", {}, 20),
        ("classification", {}, 15),
        ("classification", {"calibrator": "minmax"}, 0),  # calibrators are compared there
        ("generic", {"weight_bits": 6}, 0),
        ("detection", {"weight_bits": 6}, 20),
    ],
)
def test_what_layers_are_left_float_for(
    task: Task, choices: dict[str, object], aimed: float
) -> None:
    assert aimed_snr(Recipe(model="net.onnx", **choices), task) == aimed  # type: ignore[arg-type]


def test_labels_outweigh_noise() -> None:
    validation = Validation(
        numerics={"logits": BAD}, accuracy=Accuracy("top1", 80.0, 80.0, 0.0, agreement=95.0)
    )
    command = "reptrt engine net.onnx"
    assert find_shortfall(validation, *plan(), command) is None
    disagreeing = Validation(numerics={"logits": BAD}, accuracy=Accuracy("top1", agreement=80.0))
    assert find_shortfall(disagreeing, *plan(), command) is not None


def test_an_exact_output_is_close_enough_and_a_bound_includes_its_value() -> None:
    assert is_close_enough(CalibrationResult("minmax"), 12)
    assert is_close_enough(CalibrationResult("minmax", snr_db=12.0), 12)
    assert not is_close_enough(CalibrationResult("minmax", snr_db=11.9), 12)


def test_low_quality_is_a_reason_to_deploy_the_float_engine() -> None:
    verdict = Verdict(shortfall=Shortfall("scores", 7.0, 12.0, 1, 2, "run it again"))
    faster = replace(report(0.2, 0.3, drop=None), verdict=verdict)
    chosen = choose_deployment(faster)
    assert chosen.deploy == "fp16"
    assert chosen.reason.startswith("INT8 leaves output scores only 7.0 dB; it is 1.50× faster")


def test_the_worst_output_is_the_first_row() -> None:
    many = make_report(numerics={"boxes": GOOD, "scores": BAD, "exact": OutputNumerics(None, 1.0)})
    labels = [row.label for row in numerics_rows(many)]
    assert labels == ["output scores", "output boxes", "output exact"]
