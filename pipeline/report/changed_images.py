"""The labelled images that INT8 sees otherwise than FP32: whose class, or the classes of whose pixels, changed."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from reptrt.engines.outputs.detection import FloatArray
from reptrt.engines.runtime.runners import OnnxRuntimeRunner
from reptrt.models.card import ModelCard
from reptrt.models.names import HUB_PREFIXES, TIMM, TIMM_PREFIX
from reptrt.pipeline.data.batches import ImageSet
from reptrt.pipeline.data.datasets import ClassificationSet
from reptrt.pipeline.data.in_memory import LabelledArrays, MaskedArrays
from reptrt.pipeline.data.labels import class_titles
from reptrt.pipeline.data.masks import VOID, MaskSet
from reptrt.pipeline.data.preprocess import as_picture
from reptrt.pipeline.report.draw_boxes import PALETTE
from reptrt.pipeline.report.example_images import Picture
from reptrt.pipeline.report.number_format import percent
from reptrt.pipeline.validation.classification_metrics import class_probabilities
from reptrt.pipeline.validation.evaluate_batches import infer
from reptrt.pipeline.validation.segmentation_metrics import read_classes
from reptrt.pipeline.validation.validate import ValidationSetup, quantized_runner

SHOWN_CLASSES = 3
_SIDE = 224
_JPEG_QUALITY = 80
_OPACITY = 0.55
_OF_IMAGENET = (TIMM_PREFIX, *HUB_PREFIXES, "torchvision:")
"""Beginnings of MODEL whose 1000 classes are ImageNet's."""


@dataclass(frozen=True)
class Guess:
    """A class by its name, its probability in percent, and whether it is what the image shows."""

    name: str
    percent: float
    is_right: bool


@dataclass(frozen=True)
class ChangedImage:
    """One image whose class changed.

    Attributes:
        title: its file, or its place.
        label: the class that it shows.
        jpeg: what the network sees.
        fp32: its likeliest classes, the first one first.
        quantized: likewise.
    """

    title: str
    label: str
    jpeg: bytes
    fp32: tuple[Guess, ...]
    quantized: tuple[Guess, ...]


def changed_classes(
    setup: ValidationSetup,
    card: ModelCard,
    evaluation: ClassificationSet | LabelledArrays,
    indices: Sequence[int],
) -> list[ChangedImage]:
    """The images at `indices`, and what both models make of them.

    Args:
        setup: what was validated.
        card: contract of the network.
        evaluation: labelled images.
        indices: in it, in the order of the report.
    """
    names = class_titles(card.num_classes, card.classes, _is_of_imagenet(card.model))
    found = []
    for index, outputs in zip(
        indices, _answers(setup, card, evaluation.images, indices), strict=True
    ):
        label = int(evaluation.labels[index])
        fp32, quantized = (_best(class_probabilities(one)[0], names, label) for one in outputs)
        image = as_picture(evaluation.images.at(index), card.preprocess)
        title = _title(evaluation.images, index)
        found.append(ChangedImage(title, names[label], _jpeg(image), fp32, quantized))
    return found


def changed_masks(
    setup: ValidationSetup,
    card: ModelCard,
    evaluation: MaskSet | MaskedArrays,
    indices: Sequence[int],
) -> list[Picture]:
    """The images at `indices` with the class of every pixel over them; arguments as in `changed_classes`."""
    found = []
    for index, outputs in zip(
        indices, _answers(setup, card, evaluation.images, indices), strict=True
    ):
        image = as_picture(evaluation.images.at(index), card.preprocess)
        maps = [read_classes(one, card.preprocess.image_size)[0] for one in outputs]
        counted = evaluation.classes_of(index) != VOID
        share = 100 * np.mean((maps[0] != maps[1])[counted]) if counted.any() else 0.0
        fp32, quantized = (_jpeg(_coloured(image, classes)) for classes in maps)
        note = f"{percent(float(share))} of the pixels changed"
        found.append(Picture(_title(evaluation.images, index), note, fp32, quantized))
    return found


def _answers(
    setup: ValidationSetup, card: ModelCard, images: ImageSet, indices: Sequence[int]
) -> Iterator[tuple[FloatArray, FloatArray]]:
    """First output `[1, ...]` of both models for each of `indices`."""
    is_float = setup.reference == "float"
    fp32 = OnnxRuntimeRunner(setup.reference_onnx, optimize=is_float, name="FP32")
    with fp32, quantized_runner(setup) as quantized:
        for index in indices:
            one = images.at(index)[None]
            outputs = [infer(runner, one, setup.batch_size) for runner in (fp32, quantized)]
            yield outputs[0][card.outputs[0]], outputs[1][card.outputs[0]]


def _best(
    probabilities: NDArray[np.float64], names: Sequence[str], label: int
) -> tuple[Guess, ...]:
    best = np.argsort(-probabilities, kind="stable")[:SHOWN_CLASSES]
    return tuple(
        Guess(names[one], 100 * float(probabilities[one]), int(one) == label) for one in best
    )


def _is_of_imagenet(model: str) -> bool:
    return model in TIMM or model.startswith(_OF_IMAGENET)


def _title(images: ImageSet, index: int) -> str:
    return Path(images.name_of(index)).name


def _coloured(image: NDArray[np.uint8], classes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """`image` under the colours of its `classes` [h, w]; class 0, often the background, stays as it is."""
    colours = np.array(PALETTE, dtype=np.float64)[(classes - 1.0).astype(np.int64) % len(PALETTE)]
    opacity = np.where(classes == 0, 0.0, _OPACITY)[..., None]
    blended: NDArray[np.uint8] = ((1 - opacity) * image + opacity * colours).astype(np.uint8)
    return blended


def _jpeg(pixels: NDArray[np.uint8]) -> bytes:
    """A JPEG file whose longer side is 224 pixels."""
    picture = Image.fromarray(pixels)
    scale = _SIDE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    method = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BICUBIC
    stream = io.BytesIO()
    picture.resize(size, method).save(stream, format="JPEG", quality=_JPEG_QUALITY)
    return stream.getvalue()
