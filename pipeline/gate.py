"""The gate of a run: what its recipe asks for, held against what its validation measured."""

from __future__ import annotations

from dataclasses import replace

from reptrt.engines.report_schema import Validation, Verdict
from reptrt.models.names import DEMO
from reptrt.pipeline.data.datasets import DataError
from reptrt.pipeline.model_card import read_card
from reptrt.pipeline.recipe import Recipe
from reptrt.pipeline.run import Run
from reptrt.pipeline.validation.likeness import HeldOut
from reptrt.pipeline.validation.shortfall import find_shortfall
from reptrt.pipeline.validation.verdict import Bounds, bounds_of, judge
from reptrt.pipeline.workspace.folder import read_artifact


def is_gated(recipe: Recipe) -> bool:
    """Whether `recipe` asks for a verdict."""
    return bounds_of(recipe, None).are_asked


def require_labels(run: Run) -> None:
    """Refuse a least accuracy that nothing could be held against, before anything runs.

    Raises:
        DataError: there are no labelled images.
    """
    if run.recipe.min_accuracy is not None and not has_labels(run):
        raise DataError(
            "`min_accuracy`: there is no accuracy without labelled images; add them (`evaluate`), or leave it"
            " out (`max_drop` and `min_agreement` compare with FP32 where there are no labels)"
        )


def has_labels(run: Run) -> bool:
    """Whether there is anything that measures accuracy."""
    recipe = run.recipe
    return bool(recipe.evaluation or run.measure) or recipe.model == DEMO


def open_unlabelled(run: Run) -> HeldOut | None:
    """Images to judge by where a gate was asked for without labels; None where there are labels, or no gate.

    Raises:
        DataError: there are no images, or none that can be read.
    """
    return None if has_labels(run) or not is_gated(run.recipe) else run.held_out


def verdict_of(run: Run) -> Verdict:
    """Judge what the stage `validate` measured.

    Raises:
        WorkspaceError: it has not run.
    """
    validation = read_artifact(run.workspace.validation, "validate", Validation)
    shortfall = find_shortfall(validation, run.recipe, run.plan, run.command)
    return replace(judge(validation, run_bounds(run)), shortfall=shortfall)


def run_bounds(run: Run) -> Bounds:
    """What the result of `run` has to reach."""
    return bounds_of(run.recipe, read_card(run.workspace.trt_onnx).stated_accuracy)
