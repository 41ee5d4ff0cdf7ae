"""Which images a detector's report shows, and what FP32 and INT8 found in each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from reptrt.engines.outputs.detection import Detections
from reptrt.engines.runtime.runners import OnnxRuntimeRunner, Runner
from reptrt.models.card import ModelCard
from reptrt.pipeline.data.datasets import DetectionSet
from reptrt.pipeline.data.preprocess import read_image
from reptrt.pipeline.report.draw_boxes import DrawnBox, draw_boxes
from reptrt.pipeline.validation.evaluate import detect_batch
from reptrt.pipeline.validation.shown_boxes import ShownBoxes, shown_boxes
from reptrt.pipeline.validation.validate import ValidationSetup, quantized_runner

NUM_PICTURES = 6
NUM_USUAL = 2
"""Where no image has a box in one of the two only."""


@dataclass(frozen=True)
class Picture:
    """One image with the detections of both models drawn on it; PNG or JPEG bytes.

    `note` says why it is shown.
    """

    title: str
    note: str
    fp32_png: bytes
    quantized_png: bytes


def draw_pictures(
    setup: ValidationSetup,
    card: ModelCard,
    evaluation: DetectionSet,
    tallies: Sequence[tuple[int, int]],
) -> list[Picture]:
    """Boxes of FP32 and of INT8 on some images of `evaluation`.

    Args:
        setup: what was validated; of an end-to-end engine, INT8's boxes are its own.
        card: contract of the network.
        evaluation: labelled images.
        tallies: (boxes shown, boxes that only one model finds) of each image.
    """
    fp32 = OnnxRuntimeRunner(setup.workspace.fp32_onnx, name="FP32")
    with fp32, quantized_runner(setup) as quantized:
        return [
            _picture(_one(evaluation, index), (fp32, quantized), setup, card)
            for index in choose_images(tallies)
        ]


def choose_images(tallies: Sequence[tuple[int, int]]) -> list[int]:
    """Indices of the images to show: those with most boxes that only one of the two models finds, worst first.

    Where there is none, a few with about the median number of boxes; images without boxes are never chosen.
    """
    images = [index for index, (boxes, _) in enumerate(tallies) if boxes]
    different = sorted(
        (index for index in images if tallies[index][1]), key=lambda i: -tallies[i][1]
    )
    if different or not images:
        return different[:NUM_PICTURES]
    usual = np.median([tallies[index][0] for index in images])
    return sorted(images, key=lambda i: abs(tallies[i][0] - usual))[:NUM_USUAL]


def _one(evaluation: DetectionSet, index: int) -> DetectionSet:
    """The image at `index` alone."""
    part = slice(index, index + 1)
    return replace(
        evaluation,
        files=evaluation.files[part],
        annotations=evaluation.annotations[part],
        sizes=evaluation.sizes[part],
    )


def _picture(
    one: DetectionSet, runners: tuple[Runner, Runner], setup: ValidationSetup, card: ModelCard
) -> Picture:
    fp32, quantized = shown_boxes(*(_detect(runner, one, setup, card) for runner in runners))
    names = card.classes or one.class_names
    image = np.asarray(read_image(one.files[0]))
    unmatched = int(fp32.is_unmatched.sum() + quantized.is_unmatched.sum())
    boxes = "1 box" if unmatched == 1 else f"{unmatched} boxes"
    return Picture(
        title=one.files[0].name,
        note=f"{boxes} in one of the two only" if unmatched else "the same boxes",
        fp32_png=draw_boxes(image, _drawn(fp32), names),
        quantized_png=draw_boxes(image, _drawn(quantized), names),
    )


def _detect(
    runner: Runner, one: DetectionSet, setup: ValidationSetup, card: ModelCard
) -> Detections:
    (batch,) = one.batches(1)
    return detect_batch(runner, card, batch, setup.batch_size)[0]


def _drawn(shown: ShownBoxes) -> list[DrawnBox]:
    found = shown.boxes
    rows = zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True)
    return [
        DrawnBox((x1, y1, x2, y2), score, label, is_unmatched=bool(unmatched))
        for ((x1, y1, x2, y2), score, label), unmatched in zip(
            rows, shown.is_unmatched, strict=True
        )
    ]
