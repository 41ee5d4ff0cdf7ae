"""The accuracy budget: which layers are tried next, and a network of which one layer costs too much."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import reptrt
from reptrt.calibrators.sensitivity import Aim
from reptrt.engines.budget_record import Attempt, BudgetSearch, Outcome
from reptrt.models.load import load_module
from reptrt.models.spec import PreprocessOverrides
from reptrt.pipeline.budget import LEAST_STEP, MOST_STEP, ROUNDS, next_attempt
from reptrt.pipeline.data.in_memory import store_images
from reptrt.pipeline.open_run import Caller, open_run
from reptrt.pipeline.recipe import Recipe
from reptrt.pipeline.report.recommendation import choose_deployment
from reptrt.pipeline.stages import choose_float_layers
from tests.calibrators.test_sensitivity import OneWideChannel
from tests.pipeline.report.test_recommendation import report
from tests.tiny_networks import SIZE, smooth_images

LIMIT = 8.0


def attempt(
    outcome: Outcome,
    int8_layers: int = 9,
    gain: float | None = 0.0,
    drop: float = 16.0,
    milliseconds: float = 1.0,
) -> Attempt:
    return Attempt(
        gain=gain, reached=gain, int8_layers=int8_layers, layers=10, outcome=outcome, reason="why",
        trt_onnx="", drop=drop, drop_at_most=drop + 1, milliseconds=milliseconds,
        fp16_milliseconds=2.0,
    )  # fmt: skip


def test_the_first_round_asks_for_nothing_and_one_within_the_budget_is_the_last() -> None:
    assert (
        next_attempt([], LIMIT, gains=True).gain,
        next_attempt([], LIMIT, gains=True).is_end,
    ) == (
        0.0,
        False,
    )
    assert next_attempt([attempt("met")], LIMIT, gains=True).is_end


@pytest.mark.parametrize(
    ("drop", "step"), [(8.1, LEAST_STEP), (16.0, 3.01), (100.0, MOST_STEP), (1.0, LEAST_STEP)]
)
def test_the_next_round_has_less_noise_by_how_far_the_last_one_missed(
    drop: float, step: float
) -> None:
    missed = attempt("missed", gain=5.0, drop=drop)
    following = next_attempt([missed], LIMIT, gains=True)
    assert not following.is_end
    assert following.gain == pytest.approx(5.0 + step, abs=0.01)


def test_attention_in_fp8_that_costs_too_much_is_float_in_the_next_round_and_stays_so() -> None:
    first = replace(attempt("missed"), fp8_attention=True)
    following = next_attempt([first], LIMIT, gains=True)
    assert (following.gain, following.float_attention, following.is_end) == (0.0, True, False)
    assert "attention in FP8" in following.reason
    third = next_attempt([first, attempt("missed")], LIMIT, gains=True)
    assert third.float_attention
    assert third.gain == pytest.approx(3.01, abs=0.01)
    assert next_attempt([replace(first, outcome="met")], LIMIT, gains=True).is_end


def test_after_three_rounds_or_where_no_more_layers_help_nothing_stays_in_int8() -> None:
    rounds = [attempt("missed", 9 - index, 3.0 * index) for index in range(ROUNDS)]
    following = next_attempt(rounds, LIMIT, gains=True)
    assert (following.gain, following.is_end) == (None, False)
    short = replace(attempt("missed", 5, 3.0), reached=2.0)
    stuck = next_attempt([attempt("missed"), short], LIMIT, gains=True)
    assert (stuck.gain, stuck.is_end) == (None, False)
    assert next_attempt([*rounds, attempt("met", 0, None)], LIMIT, gains=True).is_end


def test_what_more_images_would_decide_stays_in_int8() -> None:
    assert next_attempt([attempt("missed"), attempt("undecided")], LIMIT, gains=True).is_end


def test_int8_that_is_not_faster_is_left_unless_all_is_to_be_quantized() -> None:
    slow = [attempt("met", milliseconds=2.5)]
    following = next_attempt(slow, LIMIT, gains=True)
    assert (following.gain, following.is_end) == (None, False)
    assert "not predicted faster than FP16" in following.reason
    assert next_attempt(slow, LIMIT, gains=False).is_end


def test_a_network_that_is_wrong_in_fp32_is_not_searched() -> None:
    assert next_attempt([attempt("hopeless")], LIMIT, gains=True).is_end


class Classifier(nn.Module):
    """Four classes from a network of which one layer reads a channel a thousand times wider."""

    def __init__(self) -> None:
        super().__init__()
        self.body = OneWideChannel()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps: torch.Tensor = self.body(x)
        return maps.mean((2, 3)) - OFFSET


IMAGES = smooth_images(200, seed=3)
with torch.no_grad():
    OFFSET = OneWideChannel()(IMAGES).mean((2, 3)).median(0).values
    LABELS = Classifier().eval()(IMAGES).argmax(1)


def quantize(workspace: Path, **options: object) -> reptrt.Result:
    known = {"calibrator": "minmax", "channel_scaling": "none", "target": "cpu", "num_samples": 32}
    return reptrt.quantize(
        Classifier(), IMAGES[:32], evaluate=[(IMAGES, LABELS)], image_size=(SIZE, SIZE),
        workspace=workspace, task="classification", **{"progress": False, **known, **options},
    )  # fmt: skip


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> reptrt.Result:
    """A search that was stopped in its second round, and went on."""
    folder = tmp_path_factory.mktemp("searched")

    def stop(description: str, done: int, total: int) -> None:
        if description == "sensitivity":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(folder, max_drop=LIMIT, progress=stop)
    return quantize(folder, max_drop=LIMIT)


def test_the_layer_that_costs_too_much_stays_float_and_the_rest_is_int8(
    searched: reptrt.Result,
) -> None:
    budget = searched.report.budget
    assert budget is not None
    assert [one.outcome for one in budget.attempts] == ["missed", "met"]
    assert [one.int8_layers for one in budget.attempts] == [3, 2]
    first, second = budget.attempts
    assert first.drop is not None
    assert first.drop > LIMIT
    assert second.drop_at_most is not None
    assert second.drop_at_most < LIMIT
    assert searched.verdict.decision == "passed"
    assert "Round 2: 2 of 3 layers in INT8" in repr(searched)
    assert "Accuracy budget" in searched.page.read_text()


def test_a_search_that_was_stopped_goes_on_with_the_next_round(searched: reptrt.Result) -> None:
    log = (searched.workspace.folder / "run.log").read_text()
    assert log.count("validate: started") == 2
    assert log.count("calibrate: started") == 2


def test_a_search_that_is_done_is_skipped(
    searched: reptrt.Result, caplog: pytest.LogCaptureFixture
) -> None:
    root = searched.workspace.folder.parents[2]
    with caplog.at_level(logging.INFO):
        again = quantize(root, max_drop=LIMIT)
    for stage in ("budget", "sensitivity", "calibrate", "export", "validate"):
        assert f"{stage}: fresh, skipped" in caplog.text
    assert again.report.budget == searched.report.budget


def test_an_infinite_gain_leaves_every_layer_float(tmp_path: Path) -> None:
    network = load_module(Classifier(), "net", PreprocessOverrides((SIZE, SIZE), None, None))
    recipe = Recipe(model="net", data=store_images(IMAGES[:32], tmp_path, 32), target="cpu")
    with open_run(recipe, tmp_path, Caller("test"), network) as run:
        choose_float_layers(run, Aim(math.inf, math.inf))
        model = run.make_network().quantized
        assert sorted(run.sensitive.layers) == ["body.first", "body.last", "body.sensitive"]
        assert (model.weight_quantizers, model.activation_quantizers) == ({}, {})


def test_the_float_network_is_what_to_deploy_where_no_int8_is_within_the_budget() -> None:
    rounds = (attempt("missed"), attempt("met", 0, None))
    reason = next_attempt(rounds, LIMIT, gains=True).reason
    assert reason == "9 of 10 layers in INT8 are not the answer: why"
    found = replace(report(0.3, 0.3, limit=LIMIT), budget=BudgetSearch(LIMIT, rounds, reason))
    assert choose_deployment(found) == ("fp16", reason)


def test_without_labels_the_layers_that_change_answers_stay_float(tmp_path: Path) -> None:
    result = reptrt.quantize(
        Classifier(), IMAGES, image_size=(SIZE, SIZE), workspace=tmp_path, task="classification",
        calibrator="minmax", channel_scaling="none", target="cpu", num_samples=32, max_drop=LIMIT,
        progress=False,
    )  # fmt: skip
    report = result.report
    likeness, budget = report.likeness, report.budget
    assert (report.accuracy, likeness is None, budget is None) == (None, False, False)
    assert likeness is not None
    assert (likeness.num_images, likeness.num_calibrated) == (168, 0)
    assert likeness.most_drop == pytest.approx(100 - likeness.agreement)
    assert budget is not None
    assert [one.outcome for one in budget.attempts] == ["missed", "met"]
    assert [one.int8_layers for one in budget.attempts] == [3, 2]
    assert result.verdict.decision == "passed"
    assert "no label was seen: INT8 changes the class of" in result.verdict.reason
    assert "No label was seen: INT8 agrees with FP32 to" in repr(result)
    page = result.page.read_text()
    assert "168 images, without labels" in page
    assert "can be lost" in page


@pytest.mark.parametrize(
    ("drop", "most", "step"), [(16.0, 16.0, 6.02), (4.0, 16.0, 10.0), (4.0, 8.5, LEAST_STEP), (1.0, 9.0, 1.85)]
)  # fmt: skip
def test_changed_answers_fall_with_the_amplitude_of_the_noise(
    drop: float, most: float, step: float
) -> None:
    missed = replace(attempt("missed", drop=drop), drop_at_most=most, is_provable=True)
    following = next_attempt([missed], LIMIT, gains=True, is_changed_answers=True)
    assert following.gain == pytest.approx(step, abs=0.01)
    if drop < LIMIT:  # labels or none: what misses is the upper end
        assert next_attempt([missed], LIMIT, gains=True).gain == following.gain


def test_an_upper_end_that_no_network_reaches_on_these_images_asks_for_no_larger_step() -> None:
    disagrees = replace(attempt("missed", drop=4.0), drop_at_most=16.0)
    assert next_attempt([disagrees], LIMIT, gains=True).gain == LEAST_STEP


def test_a_classifier_leaves_layers_float_until_the_upper_end_of_its_drop_is_within_the_budget(
    searched: reptrt.Result, tmp_path: Path
) -> None:
    budget = searched.report.budget
    assert budget is not None
    first = budget.attempts[0]
    assert first.drop is not None
    assert first.drop_at_most is not None
    limit = (first.drop + first.drop_at_most) / 2
    found = quantize(tmp_path, max_drop=limit)
    assert found.report.budget is not None
    attempts = found.report.budget.attempts
    assert attempts[0].drop == first.drop
    assert [(one.outcome, one.int8_layers) for one in attempts] == [("missed", 3), ("met", 2)]
    assert found.verdict.decision == "passed"
