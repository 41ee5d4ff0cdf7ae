"""Where there are no labels: how far INT8 answers as FP32 does, and what accuracy can have lost at most.

FP32's own answers stand for the labels. Where both networks answer alike, labels would find both right or both
wrong, so top-1 falls by no more than the share of images in which they differ. For masks 1 - IoU is a metric
of sets (the Jaccard distance), so mIoU falls by no more than 100 less INT8's mIoU against FP32's masks. Nothing of
the kind holds for mAP: there `POINTS` times the noise at the outputs is an estimate.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reptrt.calibrators.progress import Progress
from reptrt.engines.likeness_record import Likeness
from reptrt.engines.outputs.box_agreement import confident, image_agreements
from reptrt.engines.report_schema import Accuracy, Numerics
from reptrt.engines.runtime.runners import Array, Runner
from reptrt.models.card import ModelCard
from reptrt.models.inputs import Feed
from reptrt.pipeline.data.feeds import FeedSet
from reptrt.pipeline.validation.classification_metrics import agreement, top_class
from reptrt.pipeline.validation.evaluate import detections
from reptrt.pipeline.validation.evaluate_batches import pad_batch, rounded
from reptrt.pipeline.validation.intervals import (
    FEWEST_RESAMPLED,
    Ends,
    paired_drop_interval,
    resampled_intervals,
)
from reptrt.pipeline.validation.remembered import RememberingRunner
from reptrt.pipeline.validation.segmentation_metrics import MaskAccuracy, read_classes
from reptrt.pipeline.validation.validate import ValidationSetup, evaluation_runner

POINTS = 40.0
"""Points of mAP that a detector loses for each unit of noise-to-signal power at its outputs: a guess, for the three
sets of docs/channels.md lost 49, 145 and 47 on 128 images. The first round of a search follows it, and what is
said of a detector without labels."""

Both = tuple[Mapping[str, Array], Mapping[str, Array]]
"""Outputs of FP32 and of INT8 for one batch."""


@dataclass(frozen=True)
class HeldOut:
    """Images to judge by where there are no labels.

    Attributes:
        samples: the images.
        num_calibrated: of these, that calibrated too.
    """

    samples: FeedSet
    num_calibrated: int


def measure_likeness(
    setup: ValidationSetup,
    card: ModelCard,
    held_out: HeldOut,
    numerics: Numerics | None,
    progress: Progress,
) -> Likeness:
    """Compare the answers of the float model with those of the engine, or of its graph.

    Args:
        setup: what is validated.
        card: what both read, and what their outputs mean.
        held_out: the images.
        numerics: outputs of INT8 against FP32's.
        progress: called as work advances.
    """
    reference = RememberingRunner(
        setup.reference_onnx, setup.memory, setup.reference == "float", "reference"
    )
    with reference as fp32, evaluation_runner(setup) as int8:
        both = _outputs_of_both((fp32, int8), card, held_out.samples, setup.batch, progress)
        if card.task == "detection":
            return compare_boxes(both, card, held_out, expected_drop(numerics or {}))
        if card.task == "segmentation":
            return compare_masks(both, card, held_out)
        return compare_classes(both, card, held_out)


def can_be_proved(found: Likeness | Accuracy | None, max_drop: float | None) -> bool:
    """Whether a network that changes no answer would surely stay within `max_drop`: there are enough images.

    Of labelled images that is known for the classes of a classifier alone.
    """
    if found is None or max_drop is None:
        return False
    if found.metric == "top1":
        return 100 * paired_drop_interval(0, 0, found.num_images or 1).high < max_drop
    return isinstance(found, Likeness) and found.bound == "proof" and found.interval is not None


def _outputs_of_both(
    runners: tuple[Runner, Runner],
    card: ModelCard,
    samples: FeedSet,
    batch: int,
    progress: Progress,
) -> Iterator[Both]:
    batches, counts = samples.feeds(batch), samples.sizes(batch)
    for done, (feed, count) in enumerate(zip(batches, counts, strict=True), start=1):
        padded: Feed = {
            one.name: pad_batch(feed[one.name], batch) if one.batched else feed[one.name]
            for one in card.inputs
        }
        found = [runner.infer(dict(padded)) for runner in runners]
        fp32, int8 = ({name: value[:count] for name, value in one.items()} for one in found)
        yield fp32, int8
        progress("compare FP32 and INT8", done, len(batches))


def compare_classes(both: Iterable[Both], card: ModelCard, held_out: HeldOut) -> Likeness:
    """Classes of FP32 and of INT8."""
    output, pairs = card.outputs[0], list[tuple[NDArray[np.int64], NDArray[np.int64]]]()
    for fp32, int8 in both:
        pairs.append((top_class(fp32[output]), top_class(int8[output])))
    before, after = (np.concatenate(one) for one in zip(*pairs, strict=True))
    alike, count = agreement(before, after), len(before)
    changed = round(count * (1 - alike / 100))
    return Likeness(
        metric="top1",
        agreement=round(alike, 2),
        num_images=count,
        num_calibrated=held_out.num_calibrated,
        most_drop=round(100 - alike, 2),
        interval=rounded(paired_drop_interval(changed, 0, count), 100),
        is_telling=len(np.unique(before)) > 1,
    )


def compare_masks(both: Iterable[Both], card: ModelCard, held_out: HeldOut) -> Likeness:
    """Classes of the pixels."""
    output, size, count = card.outputs[0], card.preprocess.image_size, len(held_out.samples)
    accuracy, same, pixels, index = MaskAccuracy(count), 0, 0, 0
    seen = set[int]()
    for outputs in both:
        fp32, int8 = (read_classes(one[output], size) for one in outputs)
        for before, after in zip(fp32, int8, strict=True):
            accuracy.update(index, after, before)
            index += 1
        same += int(np.count_nonzero(fp32 == int8))
        pixels += fp32.size
        seen |= set(np.unique(fp32).tolist())

    def drop(drawn: NDArray[np.int64]) -> tuple[NDArray[np.float64]]:
        return (np.array([100 - accuracy.mean_iou(one) for one in drawn]),)

    ends: Ends | None = None
    if count >= FEWEST_RESAMPLED:
        (ends,) = resampled_intervals(drop, count)
    return Likeness(
        metric="miou",
        agreement=round(100 * same / max(1, pixels), 2),
        num_images=count,
        num_calibrated=held_out.num_calibrated,
        most_drop=round(100 - accuracy.mean_iou(), 2),
        interval=rounded(ends) if ends else None,
        is_telling=len(seen) > 1,
    )


def compare_boxes(
    both: Iterable[Both], card: ModelCard, held_out: HeldOut, drop: float
) -> Likeness:
    """Boxes; `drop` is the estimate."""
    alike, shown = list[float](), 0
    for outputs in both:
        fp32, int8 = (detections(one, card) for one in outputs)
        alike += image_agreements(fp32, int8)
        shown += sum(len(confident(one).scores) for one in fp32)
    return Likeness(
        metric="map_50_95",
        agreement=round(float(np.mean(alike)), 2),
        num_images=len(alike),
        num_calibrated=held_out.num_calibrated,
        most_drop=round(drop, 2),
        bound="estimate",
        is_telling=shown > 0,
    )


def expected_drop(numerics: Numerics) -> float:
    """Points of mAP, 100 at most, for the mean noise of the outputs; one that is exact has none."""
    noise = [
        float("inf")
        if one.cosine is None
        else 0.0
        if one.snr_db is None
        else 10 ** (-one.snr_db / 10)
        for one in numerics.values()
    ]
    return min(100.0, POINTS * float(np.mean(noise))) if noise else 100.0
