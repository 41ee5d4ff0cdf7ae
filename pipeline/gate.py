"""The gate of a run: what its recipe asks for, held against what its validation measured."""

from __future__ import annotations

from dataclasses import replace

from reptrt.engines.report_schema import Validation, Verdict
from reptrt.models.names import DEMO
from reptrt.pipeline.data.datasets import DataError
from reptrt.pipeline.model_card import read_card
from reptrt.pipeline.recipe import Recipe
from reptrt.pipeline.run import Run
from reptrt.pipeline.validation.shortfall import find_shortfall
from reptrt.pipeline.validation.verdict import Bounds, bounds_of, judge
from reptrt.pipeline.workspace.folder import read_artifact

_ASKING = ("max_drop", "min_accuracy", "min_agreement")


def is_gated(recipe: Recipe) -> bool:
    """Whether `recipe` asks for a verdict."""
    return bounds_of(recipe, None).are_asked


def require_labels(run: Run) -> None:
    """Refuse a gate that nothing could judge, before anything runs.

    Raises:
        DataError: there are no labelled images.
    """
    recipe = run.recipe
    is_labelled = recipe.evaluation or run.measure or recipe.model == DEMO
    if is_gated(recipe) and not is_labelled:
        asked = [f"`{name}`" for name in _ASKING if getattr(recipe, name) is not None]
        raise DataError(
            f"{' and '.join(asked)}: nothing can be judged without labelled images; add them (`evaluate`),"
            " or leave the gate out"
        )


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
