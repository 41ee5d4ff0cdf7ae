"""The labelled images that a report shows, with what both models make of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reptrt.engines.report_schema import Validation
from reptrt.models.card import ModelCard
from reptrt.pipeline.data.datasets import ClassificationSet, DetectionSet, EvaluationSet
from reptrt.pipeline.data.in_memory import LabelledArrays, MaskedArrays
from reptrt.pipeline.data.masks import MaskSet
from reptrt.pipeline.report.changed_images import ChangedImage, changed_classes, changed_masks
from reptrt.pipeline.report.example_images import Picture, draw_pictures
from reptrt.pipeline.validation.validate import ValidationSetup

_PICTURED = (1, 3)
"""Channels of inputs that are pictures."""


@dataclass(frozen=True)
class Examples:
    """Images where FP32 and INT8 differ most, of one task.

    Attributes:
        detections: with the boxes of both, then typical images.
        masks: with the class of every pixel.
        classes: whose class changed.
    """

    detections: Sequence[Picture] = ()
    masks: Sequence[Picture] = ()
    classes: Sequence[ChangedImage] = ()


def find_examples(
    setup: ValidationSetup,
    card: ModelCard,
    evaluation: EvaluationSet | None,
    validation: Validation,
) -> Examples:
    """Run both models on the few images of `evaluation` that `validation` says differ most."""
    if isinstance(evaluation, DetectionSet):
        return Examples(draw_pictures(setup, card, evaluation, validation.shown or ()))
    if card.preprocess.num_channels not in _PICTURED or not validation.changed:
        return Examples()
    if isinstance(evaluation, (MaskSet, MaskedArrays)):
        return Examples(masks=changed_masks(setup, card, evaluation, validation.changed))
    if isinstance(evaluation, (ClassificationSet, LabelledArrays)):
        return Examples(classes=changed_classes(setup, card, evaluation, validation.changed))
    return Examples()
