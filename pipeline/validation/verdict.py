"""The verdict: whether the quantized model is good enough to be deployed.

Where a gate was asked for, every check must pass, and what cannot be judged fails: too few images, or no
accuracy. FP32 itself is checked first, for a model that is wrong in FP32 loses nothing in INT8.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from reptrt.engines.likeness_record import Likeness
from reptrt.engines.report_schema import NOT_JUDGED, Accuracy, Check, Interval, Validation, Verdict
from reptrt.pipeline.recipe import Recipe
from reptrt.pipeline.validation.intervals import (
    FEWEST_RESAMPLED,
    images_for,
    paired_drop_interval,
    share_interval,
)

CLASSIFIER_AGREEMENT = 90.0
"""Percent of images with FP32's class that an 8-bit classifier must keep."""
DETECTOR_AGREEMENT = 85.0
"""F1 in percent against FP32's boxes that an 8-bit detector must keep."""
MASK_AGREEMENT = 95.0
"""Percent of pixels with FP32's class that an 8-bit segmentation network must keep."""
LEAST_SNR = 3.0
"""dB of every output; 0 dB is what an output of zeros has."""
STATED_TOLERANCE = 1.0
"""Points that FP32 may be below the accuracy its checkpoint states: other resize filters cost as much."""
_REMEDY = "check mean, std, channels, labels and weights, or state `min_accuracy`"


@dataclass(frozen=True)
class Bounds:
    """What the result has to reach; None where nothing was said.

    Attributes:
        max_drop: most points of accuracy that INT8 may lose.
        min_accuracy: least accuracy of FP32 and of INT8, in percent or the metric's unit.
        min_agreement: least agreement with FP32 in percent; None takes that of the task at 8 bits.
        min_snr: least dB of every output.
        stated_accuracy: that the checkpoint states, in percent.
        is_full_bits: whether weights and activations have 8 bits.
        force: deploy even what fails.
    """

    max_drop: float | None = None
    min_accuracy: float | None = None
    min_agreement: float | None = None
    min_snr: float = LEAST_SNR
    stated_accuracy: float | None = None
    is_full_bits: bool = True
    force: bool = False

    @property
    def are_asked(self) -> bool:
        """Whether the user asked for a gate."""
        asked = (self.max_drop, self.min_accuracy, self.min_agreement)
        return any(bound is not None for bound in asked)


def bounds_of(recipe: Recipe, stated_accuracy: float | None) -> Bounds:
    """What `recipe` asks for, of a checkpoint that states `stated_accuracy`."""
    return Bounds(
        max_drop=recipe.max_drop,
        min_accuracy=recipe.min_accuracy,
        min_agreement=recipe.min_agreement,
        min_snr=max(recipe.min_snr or 0.0, LEAST_SNR),
        stated_accuracy=stated_accuracy,
        is_full_bits=recipe.is_full_bits,
        force=recipe.force,
    )


def judge(validation: Validation, bounds: Bounds) -> Verdict:
    """Hold what was measured against `bounds`."""
    checks = tuple(_checks(validation, bounds))
    if validation.reference == "file":
        checks = tuple(
            replace(one, reason=one.reason.replace("FP32", "the file")) for one in checks
        )
    missed = [check for check in checks if not check.passed]
    images = max((check.images for check in missed if check.images), default=None)
    if not bounds.are_asked:
        return replace(NOT_JUDGED, checks=checks, images=images)
    if missed:
        reason = "; ".join(check.reason for check in missed)
        return Verdict("failed", reason, checks, images, forced=bounds.force)
    return Verdict("passed", _tightest(checks), checks)


def _tightest(checks: tuple[Check, ...]) -> str:
    """What the checks of accuracy found."""
    return "; ".join(check.reason for check in checks if check.name in ("drop", "agreement"))


def _checks(validation: Validation, bounds: Bounds) -> Iterator[Check]:
    yield from _input(validation)
    yield _finite(validation)
    accuracy = validation.accuracy
    if accuracy is not None:
        yield _floor(accuracy, bounds)
        if bounds.min_accuracy is not None:
            yield _least("INT8 accuracy", accuracy.quantized, bounds.min_accuracy)
        yield from _drop(accuracy, bounds)
        yield from _agreement(accuracy, bounds)
    elif validation.likeness is not None:
        yield from _without_labels(validation.likeness, bounds)
    elif bounds.are_asked:
        reason = "no accuracy was measured: add labelled images (`evaluate`)"
        yield Check("accuracy", None, reason)
    yield from _snr(validation, bounds)


def _without_labels(likeness: Likeness, bounds: Bounds) -> Iterator[Check]:
    """What can be said where FP32's answers stand for the labels."""
    images, drop = judged_on(likeness), likeness.most_drop
    answers = (
        f"FP32 answers all {images} alike, so that they tell nothing: check mean, std and channels"
    )
    if likeness.is_telling:
        answers = "no label says whether FP32 is right"
    yield Check("FP32 answers", likeness.is_telling or None, answers)
    is_proof = likeness.bound == "proof"
    differing = round(likeness.num_images * drop / 100) if likeness.metric == "top1" else None
    accuracy = Accuracy(
        likeness.metric,
        drop=drop,
        agreement=likeness.agreement,
        num_images=likeness.num_images if is_proof else None,
        drop_interval=likeness.interval,
        lost=differing,
        gained=None if differing is None else 0,
    )
    loses = f"the noise at INT8's outputs costs about {drop:.2f} points of mAP, by an estimate"
    if differing is not None:
        loses = f"INT8 changes the class of {drop:.2f} % of {images}, and can lose as many points"
    elif is_proof:
        loses = f"INT8 has {100 - drop:.2f} % mIoU with FP32's masks on {images}, and can lose {drop:.2f} points"
    yield from _drop(accuracy, bounds, f"no label was seen: {loses}")
    yield from _agreement(accuracy, bounds, f" on {images} without labels")


def judged_on(likeness: Likeness) -> str:
    """The images without labels, and whether they calibrated too."""
    count, shared = likeness.num_images, likeness.num_calibrated
    images = "1 image" if count == 1 else f"{count} images"
    if not shared:
        return images
    return (
        f"{images} (all of which calibrated too)"
        if shared == count
        else f"{images} ({shared} calibrated too)"
    )


def _input(validation: Validation) -> Iterator[Check]:
    if validation.is_constant_input:
        reason = "every pixel of the network's input is the same: check the images, mean and std"
        yield Check("input", False, reason)


def _finite(validation: Validation) -> Check:
    """Neither an output nor a layer that was compared may hold NaN or infinity."""
    outputs = {
        "INT8 model": validation.numerics,
        "engine": validation.engine_numerics,
    }
    bad = [
        f"output {name} of the {model}"
        for model, numerics in outputs.items()
        for name, output in (numerics or {}).items()
        if output.cosine is None
    ]
    bad += [f"layer {layer.layer}" for layer in validation.layers if not layer.is_finite]
    if not bad:
        return Check("finite", True, "every output and layer is finite")
    more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
    return Check("finite", False, f"{bad[0]}{more}: NaN or infinite")


def _floor(accuracy: Accuracy, bounds: Bounds) -> Check:
    """Is FP32 right at all: as the user says, as its checkpoint states, or better than chance."""
    name, fp32 = "FP32 accuracy", accuracy.fp32
    if bounds.min_accuracy is not None:
        return _least(name, fp32, bounds.min_accuracy)
    interval = accuracy.fp32_interval
    if accuracy.num_images is None:
        return Check(name, True, "a metric of the user's own has no chance level", fp32)
    if interval is None or fp32 is None or accuracy.chance is None:
        return Check(name, None, _too_few(accuracy), fp32)
    found = f"FP32 has {fp32:.2f} % ({_written(interval)}) on {_images(accuracy)}"
    if bounds.stated_accuracy is not None:
        least = bounds.stated_accuracy - STATED_TOLERANCE
        if interval[1] < least:
            reason = f"{found}, and its checkpoint states {bounds.stated_accuracy:.2f} %: {_REMEDY}"
            return Check(name, False, reason, fp32, least)
    if interval[0] > accuracy.chance:
        return Check(
            name, True, f"{found}, and chance is {accuracy.chance:.2f} %", fp32, accuracy.chance
        )
    reason = f"{found}, which is not surely more than chance ({accuracy.chance:.2f} %): {_REMEDY}"
    if fp32 <= accuracy.chance:
        return Check(name, False, reason, fp32, accuracy.chance)
    return Check(name, None, reason, fp32, accuracy.chance, _images_for_floor(accuracy))


def _drop(accuracy: Accuracy, bounds: Bounds, loses: str = "") -> Iterator[Check]:
    """The upper end of the drop's interval is within the limit; `loses` says of what, where there are no labels."""
    limit, drop, interval = bounds.max_drop, accuracy.drop, accuracy.drop_interval
    if limit is None:
        return
    if drop is None or not math.isfinite(drop):
        yield Check("drop", None, "the drop is unknown", None, limit)
        return
    kind, where = ("", "") if loses else ("labelled ", f" on {_images(accuracy)}")
    does = "loses" if drop >= 0 else "gains"
    loses = loses or f"INT8 {does} {abs(drop):.2f} points"
    if drop > limit:
        yield Check("drop", False, f"{loses}, and the limit is {limit:.2f}", drop, limit)
    elif interval is not None and interval[1] >= limit:
        most = f"{'which may be' if drop >= 0 else 'and may lose'} up to {interval[1]:.2f}"
        reason = f"{loses}{where}, {most}, and the limit is {limit:.2f}"
        needed = _images_for_drop(accuracy, limit)
        if needed is not None:
            reason += f": about {needed} {kind}images would decide"
        yield Check("drop", None, reason, drop, limit, needed)
    elif interval is None and accuracy.num_images is not None:
        yield Check("drop", None, _too_few(accuracy), drop, limit, FEWEST_RESAMPLED)
    else:
        yield Check("drop", True, loses + _at_most(drop, interval), drop, limit)


def _at_most(drop: float, interval: Interval | None) -> str:
    """The upper end of `drop`, where it is known, behind what INT8 loses or gains."""
    if interval is None:
        return ""
    if drop >= 0:
        return f", at most {interval[1]:.2f}"
    return (
        f", at least {-interval[1]:.2f}"
        if interval[1] < 0
        else f", and may lose up to {interval[1]:.2f}"
    )


def is_agreed(found: Accuracy | Likeness) -> bool:
    """Whether INT8 decides as FP32 does on as many images as an 8-bit model must."""
    return found.agreement is not None and found.agreement >= _usual_agreement(found.metric)


def _usual_agreement(metric: str) -> float:
    if metric == "miou":
        return MASK_AGREEMENT
    is_detector = metric.startswith("map")
    return DETECTOR_AGREEMENT if is_detector else CLASSIFIER_AGREEMENT


def _agreement(accuracy: Accuracy, bounds: Bounds, where: str = "") -> Iterator[Check]:
    found, least, default = accuracy.agreement, bounds.min_agreement, ""
    if least is None and bounds.is_full_bits:
        least = _usual_agreement(accuracy.metric)
        default = " (the default of `min_agreement`)"
    if least is None or (
        found is None and default
    ):  # a user's own metric says nothing of each image
        return
    if found is None:
        yield Check("agreement", None, "the agreement with FP32 is unknown", None, least)
    elif found >= least:
        yield Check(
            "agreement", True, f"INT8 agrees with FP32 to {found:.2f} %{where}", found, least
        )
    else:
        reason = (
            f"INT8 agrees with FP32 to {found:.2f} %{where}, at least {least:.2f}{default} wanted"
        )
        yield Check("agreement", False, reason, found, least)


def _snr(validation: Validation, bounds: Bounds) -> Iterator[Check]:
    """Every output keeps its distance from noise; one that is exact has no SNR."""
    if bounds.are_asked and not validation.numerics:
        yield Check("SNR", None, "no output was compared with FP32's")
    for whose, numerics in (
        ("", validation.numerics),
        (" of the engine", validation.engine_numerics),
    ):
        for name, output in (numerics or {}).items():
            if output.snr_db is not None and output.snr_db < bounds.min_snr:
                found = f"output {name}{whose} has {output.snr_db:.1f} dB"
                reason = f"{found}, at least {bounds.min_snr:.1f} wanted"
                yield Check(f"SNR of {name}{whose}", False, reason, output.snr_db, bounds.min_snr)


def _least(name: str, found: float | None, least: float) -> Check:
    model = name.split()[0]
    if found is None:
        return Check(name, None, f"the accuracy of {model} is unknown", None, least)
    if found >= least:
        return Check(name, True, f"{model} has {found:.2f}", found, least)
    return Check(name, False, f"{model} has {found:.2f}, at least {least:.2f} wanted", found, least)


def _images_for_floor(accuracy: Accuracy) -> int | None:
    if accuracy.metric != "top1" or accuracy.fp32 is None or accuracy.chance is None:
        return None
    share, chance = accuracy.fp32 / 100, accuracy.chance / 100
    return images_for(
        lambda count: share_interval(share * count, count).low > chance, accuracy.num_images or 1
    )


def _images_for_drop(accuracy: Accuracy, limit: float) -> int | None:
    """About how many images bring the upper end below `limit`, if all goes on as on these."""
    count, drop, interval = accuracy.num_images, accuracy.drop, accuracy.drop_interval
    if not count or drop is None or interval is None or drop >= limit:
        return None
    lost, gained = accuracy.lost, accuracy.gained
    if lost is not None and gained is not None:
        return images_for(
            lambda more: (
                100 * paired_drop_interval(lost * more / count, gained * more / count, more).high
                < limit
            ),
            count,
        )
    return round(count * ((interval[1] - drop) / (limit - drop)) ** 2)


def _too_few(accuracy: Accuracy) -> str:
    return f"{_images(accuracy)} are too few for an interval of {accuracy.metric}"


def _images(accuracy: Accuracy) -> str:
    return "1 image" if accuracy.num_images == 1 else f"{accuracy.num_images} images"


def _written(interval: Interval) -> str:
    return f"{interval[0]:.2f} to {interval[1]:.2f}"
