"""Low quality, said: the output that is furthest from FP32's, and what to do about it."""

from __future__ import annotations

import shlex

from reptrt.calibrators.names import AUTO
from reptrt.calibrators.registry import create_calibrator
from reptrt.engines.report_schema import Numerics, Shortfall, Validation
from reptrt.pipeline.plan import Plan
from reptrt.pipeline.recipe import Recipe, flag
from reptrt.pipeline.validation.verdict import is_agreed

_STAGES = ("calibrate", "export", "build", "validate", "compare")
"""Commands with the options of `engine`."""


def find_shortfall(
    validation: Validation, recipe: Recipe, plan: Plan, command: str
) -> Shortfall | None:
    """The worst part of the outputs, where it is below `plan.least_snr`.

    None also where images show that INT8 decides as FP32 does: then noise changes nothing.

    Args:
        validation: what was measured.
        recipe: what the user said.
        plan: what was done.
        command: what the user typed or called.
    """
    numerics = validation.numerics or {}
    known = {name: one.snr_db for name, one in numerics.items() if one.snr_db is not None}
    short = {name: snr for name, snr in known.items() if snr < plan.least_snr}
    answers = validation.accuracy or validation.likeness
    if not short or (answers is not None and is_agreed(answers)):
        return None
    worst = min(short, key=lambda name: short[name])
    return Shortfall(
        output=worst,
        snr_db=short[worst],
        bound=plan.least_snr,
        num_short=len(short),
        num_outputs=len(numerics),
        remedy=f"{_hint(numerics)}run {_next(recipe, plan, command)}",
    )


def _hint(numerics: Numerics) -> str:
    """Whether the network sees nothing that it knows."""
    background = [name for name, output in numerics.items() if output.is_background]
    if not background:
        return ""
    return (
        f"output {background[0]} never leaves its background, so these images show nothing of what"
        " the network was made for, or `mean` and `std` are others: calibrate with such images, or "
    )


def _next(recipe: Recipe, plan: Plan, command: str) -> str:
    """What was not tried yet: the calibrators' order, float layers, more images, FP16."""
    if plan.is_quantized:
        return _again(command, "requantize", True)
    usual = create_calibrator(plan.calibrator).usual_num_samples(
        min(plan.weight_bits, plan.activation_bits)
    )
    if recipe.min_snr is not None and recipe.min_snr == 0:
        return _again(command, "min_snr", plan.least_snr)
    if recipe.calibrator != AUTO:
        return _again(command, "calibrator", AUTO)
    if plan.num_samples < usual:
        return _again(command, "num_samples", usual)
    return f"{_again(command, 'keep_float', '*')}, which makes the FP16 engine"


def _again(command: str, option: str, value: object) -> str:
    """`command` with one option more; the last one of its kind counts."""
    words = command.split(" ", 2)
    if words[0] != "reptrt" or len(words) < 3 or words[1] not in ("engine", *_STAGES):
        return f"it again with `{option}={value}`"
    given = flag(option) if value is True else f"{flag(option)} {shlex.quote(str(value))}"
    return f"`{words[0]} engine {words[2]} {given}`"
