"""Stay within an accuracy budget: fewer layers in INT8, round by round, until the measured loss fits.

Without labels it is what accuracy can have lost at most, or an estimate of it
(`reptrt.pipeline.validation.likeness`).

The first round is as without a budget, but that attention is in FP8 where that is predicted faster; in detectors, which need layers in float, as many stay in INT8 as
an estimate of the loss allows. Then the gate's checks are held against what is measured. A round with
attention in FP8 that misses is followed by one with attention in float, another one by one whose outputs have less noise, by how far it missed.
`reptrt.calibrators.sensitivity` finds its layers: those first that cost most noise for the
microseconds that INT8 saves. After three rounds nothing stays in INT8: the float engine is the answer,
as where the layers within the budget are not predicted to be faster than FP16. Of a classifier the upper end of the
drop counts: fewer layers change fewer answers, and narrow it. Where there are too few images for that even of a network
that changes none, and of a detector, a drop within the budget whose interval is not asks for more images: the search
ends, and the verdict says so.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from reptrt.calibrators.sensitivity import Aim
from reptrt.engines.artifacts import file_sha256, write_json
from reptrt.engines.budget_record import Attempt, BudgetSearch, Outcome
from reptrt.engines.cost.constants import FITTED
from reptrt.engines.inspection.qdq_graph import read_weighted_layers
from reptrt.engines.report_schema import Check, Validation
from reptrt.pipeline.gate import open_unlabelled, run_bounds
from reptrt.pipeline.placing import network_inputs
from reptrt.pipeline.recipe import BoxSuppression, Build, Calibration, Gate
from reptrt.pipeline.report.collect import predicted_cost
from reptrt.pipeline.report.summary import worst_snr
from reptrt.pipeline.run import Run, open_labelled
from reptrt.pipeline.stages import build, calibrate, export, price, validate
from reptrt.pipeline.validation.likeness import POINTS, can_be_proved
from reptrt.pipeline.validation.validate import engine_can_run
from reptrt.pipeline.validation.verdict import judge
from reptrt.pipeline.workspace.folder import discard, read_artifact
from reptrt.pipeline.workspace.records import read_record

logger = logging.getLogger(__name__)

ROUNDS = 3
"""Most choices of layers in INT8 that are measured."""
LEAST_STEP, MOST_STEP = 1.0, 10.0
"""dB from one round to the next."""

_SAME = 0.1
"""dB: what reaches less than it was asked for has no layer more to leave float."""
_BY_INT8 = ("drop", "agreement", "INT8 accuracy")
"""Checks that fewer layers in INT8 can mend, and so can that of each output's SNR."""


@dataclass(frozen=True)
class Next:
    """What follows an attempt.

    Attributes:
        gain: of the next one, as `Attempt.gain`.
        is_end: there is no next one.
        reason: why.
        float_attention: whether attention stays float, where FP8 would be faster.
    """

    gain: float | None
    is_end: bool
    reason: str
    float_attention: bool = False


def calibrate_and_export(run: Run) -> None:
    """Calibrate and export; where `max_drop` is set, with as many layers in INT8 as it allows.

    Raises:
        WorkspaceError, DataError, ...: those of the stages.
    """
    if run.recipe.max_drop is None or run.plan.is_quantized:
        discard(run.workspace.budget)
        calibrate(run)
        export(run)
        return
    stage = run.stage("budget", _inputs(run), "budget")

    def work() -> None:
        with stage.unfinished() as folder:
            write_json(_search(run, folder / "attempts.json"), run.workspace.budget)

    stage.run(work)
    found = read_artifact(run.workspace.budget, "budget", BudgetSearch)
    *before, last = found.attempts
    calibrate(run, _aim(run, last.gain, float_attention=_has_tried_fp8(before)))
    export(run)


def _inputs(run: Run) -> dict[str, object]:
    """Whatever an attempt depends on."""
    plan, evaluation, unlabelled = run.plan, open_labelled(run, run.loaded), open_unlabelled(run)
    sections = (Calibration, Build, BoxSuppression, Gate)
    return {
        **network_inputs(run),
        **{section.__name__: plan.section(section) for section in sections},
        "images": run.samples.fingerprint,
        "evaluation": None if evaluation is None else evaluation.fingerprint,
        "unlabelled": None if unlabelled is None else unlabelled.samples.fingerprint,
        "threads": plan.threads,
        "target": run.target.name,
        "cost": repr((FITTED, run.target.data_sheet)),
    }


def _search(run: Run, file: Path) -> BudgetSearch:
    """Try until something is within the budget; `file` keeps the attempts of a run that is stopped."""
    limit = run.recipe.max_drop
    assert limit is not None
    attempts = list(read_record(file, list[Attempt])) if file.exists() else []
    while True:
        following = next_attempt(
            attempts, limit, gains=run.plan.quantize == "pays", is_changed_answers=_is_proof(run)
        )
        if following.is_end:
            return BudgetSearch(limit, tuple(attempts), following.reason)
        if attempts:
            logger.warning("%s", following.reason)
        attempts.append(_try(run, following))
        write_json(attempts, file)


def _is_proof(run: Run) -> bool:
    """Whether the loss is what share of the answers changes."""
    return open_unlabelled(run) is not None and run.loaded.task != "detection"


def next_attempt(
    attempts: Sequence[Attempt], max_drop: float, *, gains: bool, is_changed_answers: bool = False
) -> Next:
    """What to try after `attempts`.

    Args:
        attempts: so far, the last one last.
        max_drop: the budget, in points.
        gains: whether INT8 has to be predicted faster than FP16.
        is_changed_answers: losses are shares of changed answers. These fall with the amplitude of the noise, other
            losses with its power.
    """
    if not attempts:
        return Next(0.0, False, "")
    last = attempts[-1]
    where = last.choice
    if last.outcome == "hopeless" or last.gain is None or not last.int8_layers:
        return Next(None, True, last.reason if len(attempts) == 1 else _before(attempts[:-1]))

    if gains and not last.pays:
        return Next(None, False, f"{where}: {last.reason}, and not predicted faster than FP16")
    if last.outcome in ("met", "undecided"):
        return Next(None, True, f"{where}: {last.reason}")
    if last.fp8_attention:
        reason = f"{where}: {last.reason}; trying attention in FP16"
        return Next(last.gain, False, reason, float_attention=True)
    is_stuck = last.reached is not None and last.reached < last.gain - _SAME
    if len(attempts) >= ROUNDS or is_stuck:
        return Next(None, False, f"{where}: {last.reason}; trying none")
    gain = (last.reached or 0.0) + _step(last, max_drop, is_changed_answers)
    return Next(gain, False, f"{where}: {last.reason}; trying with fewer", _has_tried_fp8(attempts))


def _has_tried_fp8(attempts: Sequence[Attempt]) -> bool:
    """Whether attention was in FP8 once, which was not accurate enough."""
    return any(one.fp8_attention for one in attempts)


def _before(attempts: Sequence[Attempt]) -> str:
    """Why nothing is in INT8."""
    last = attempts[-1]
    slow = "" if last.pays else ", and is not predicted faster than FP16"
    return f"{last.choice} are not the answer: {last.reason}{slow}"


def _step(last: Attempt, max_drop: float, is_changed_answers: bool) -> float:
    """How much less noise the next round should have, in dB."""
    loss, most = last.drop, last.drop_at_most if last.is_provable else last.drop
    if loss is None or most is None or max(loss, most) <= max_drop:
        return LEAST_STEP
    if max_drop <= 0:
        return MOST_STEP
    if loss > max_drop and not is_changed_answers:
        step = 10 * math.log10(loss / max_drop)
    else:
        step = -20 * math.log10(_share_of_changes(loss, most, max_drop))
    return min(MOST_STEP, max(LEAST_STEP, step))


def _share_of_changes(loss: float, most: float, max_drop: float) -> float:
    """Share of the changed answers that may stay, so that the upper end of the loss is `max_drop`.

    The loss falls with their number, and the distance to its upper end with the square root of that.
    """
    loss, distance = max(0.0, loss), most - loss
    root = math.sqrt(distance**2 + 4 * loss * max_drop)
    return (2 * max_drop / (distance + root)) ** 2


def _aim(run: Run, gain: float | None, *, float_attention: bool) -> Aim:
    """What the stage `sensitivity` has to reach for an attempt."""
    if gain is None:
        return Aim(math.inf, math.inf, float_attention=run.plan.may_use_fp8)
    recipe, plan = run.recipe, run.plan
    min_snr = plan.min_snr
    if run.loaded.task == "detection" and recipe.min_snr is None and recipe.max_drop:
        min_snr = max(plan.least_snr, 10 * math.log10(POINTS / abs(recipe.max_drop)))
    return Aim(min_snr, gain, float_attention=float_attention)


def _try(run: Run, chosen: Next) -> Attempt:
    """Calibrate, export and measure."""
    calibrate(run, _aim(run, chosen.gain, float_attention=chosen.float_attention))
    export(run)
    return measure_attempt(run, chosen.gain)


def measure_attempt(run: Run, gain: float | None = 0.0) -> Attempt:
    """Price and validate what was exported; `gain` is what it was calibrated for."""
    price(run)
    if engine_can_run(run.target):
        build(run)
    validate(run)
    workspace, sensitive = run.workspace, run.sensitive
    found = read_artifact(workspace.validation, "validate", Validation)
    outcome, reason = _outcome(judge(found, run_bounds(run)).checks)
    is_provable = can_be_proved(found.accuracy or found.likeness, run.recipe.max_drop)
    if outcome == "undecided" and is_provable:
        outcome = "missed"
    layers = [one for one in read_weighted_layers(workspace.trt_onnx) if one.op != "ConvTranspose"]
    cost = predicted_cost(workspace)
    reached = None
    if sensitive.snr_db is not None and sensitive.int8_snr_db is not None:
        reached = sensitive.snr_db - sensitive.int8_snr_db
    return Attempt(
        gain=gain,
        reached=reached,
        int8_layers=sum(one.quantized and not one.obstacle for one in layers),
        layers=len(layers),
        outcome=outcome,
        reason=reason,
        trt_onnx=file_sha256(workspace.trt_onnx),
        **_loss(found),
        snr_db=worst_snr(found.numerics or {}),
        milliseconds=cost.int8.milliseconds if cost else None,
        fp16_milliseconds=cost.fp16.milliseconds if cost else None,
        fp8_attention=run.fp8_attention,
        is_provable=is_provable,
    )


def _loss(found: Validation) -> dict[str, float | None]:
    """Drop, its upper end and agreement, as an attempt holds them: on labelled images, or on others."""
    accuracy, likeness = found.accuracy, found.likeness
    if accuracy is not None:
        ends, drop, agreement = accuracy.drop_interval, accuracy.drop, accuracy.agreement
    elif likeness is not None:
        ends, drop, agreement = likeness.interval, likeness.most_drop, likeness.agreement
    else:
        return {}
    return {"drop": drop, "drop_at_most": ends and ends[1], "agreement": agreement}


def _outcome(checks: Sequence[Check]) -> tuple[Outcome, str]:
    """What the checks of the gate say of an attempt."""
    missed = [check for check in checks if not check.passed]
    if not missed:
        found = next((check for check in checks if check.name == "drop"), None)
        return "met", found.reason if found else "within the budget"
    reason = "; ".join(check.reason for check in missed)
    if any(one.name not in _BY_INT8 and not one.name.startswith("SNR") for one in missed):
        return "hopeless", reason
    return ("undecided" if all(one.passed is None for one in missed) else "missed"), reason
