"""What a network is for, as its outputs tell, and how images are prepared where nobody says."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from reptrt.models.spec import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Preprocess,
    PreprocessOverrides,
    Task,
)

logger = logging.getLogger(__name__)

_MIN_CLASSES = 2
_BOX_SIDES = 4
_UNIT = 1e-3
"""By how much the length of a vector, or the sum of probabilities, may differ from 1."""

_NO_CLASSES = re.compile(
    r"b?box(es)?|landmarks?|points?|keypoints?|kpts?|coord(s|inates)?|embed(ding)?s?|emb|descriptors?|offsets?|angles?"
)
"""Words in the name of an output that say what its numbers are instead of scores of classes."""

PREPROCESS: dict[Task, Preprocess] = {
    "classification": Preprocess((224, 224), IMAGENET_MEAN, IMAGENET_STD, crop_pct=0.875),
    "detection": Preprocess((640, 640), (0.0,) * 3, (1.0,) * 3, layout="letterbox"),
    "segmentation": Preprocess((512, 512), IMAGENET_MEAN, IMAGENET_STD, layout="letterbox"),
    "generic": Preprocess((224, 224), (0.0,) * 3, (1.0,) * 3),
}
"""Of models that state nothing about their images."""


class OutputError(ValueError):
    """The network returns something else than its task promises."""

    exit_code = 2


def list_outputs(returned: object) -> list[torch.Tensor]:
    """Tensors of what a network returned: one, or those of a sequence or a dict in order.

    Raises:
        OutputError: there is something else among them, or no tensor of images.
    """
    found: list[torch.Tensor] = []
    pending: list[Any] = [returned]
    while pending:
        item = pending.pop(0)
        if isinstance(item, torch.Tensor):
            found.append(item)
        elif isinstance(item, Mapping):
            pending = [*item.values(), *pending]
        elif isinstance(item, Sequence) and not isinstance(item, str):
            pending = [*item, *pending]
        elif item is not None:
            raise OutputError(f"returns a {type(item).__name__} where tensors are needed")
    if not found:
        raise OutputError("returns no tensor")
    return found


def recognize_task(
    outputs: Sequence[torch.Tensor],
    image_size: tuple[int, int],
    batch_size: int | None = None,
    names: Sequence[str] = (),
) -> Task:
    """Task that outputs for `batch_size` images look like; None for any number.

    [N, classes], N the batch, is a classifier's, unless its name speaks of boxes, points or embeddings, or each row has
    length 1, as embeddings have; maps [N, classes + 4, h, w] of at least two strides, with scores
    in 0..1, are those of a detector whose boxes `reptrt.engines.outputs.detection` decodes; anything else is
    generic. Maps of classes look like any others: segmentation is stated, never recognised.
    """
    first = outputs[0]
    is_per_image = first.ndim == 2 and batch_size in (None, first.shape[0])
    if len(outputs) == 1 and is_per_image and first.shape[1] >= _MIN_CLASSES:
        is_other = any(map(_speaks_of_no_classes, names)) or _is_embedding(first)
        return "generic" if is_other else "classification"
    if len(outputs) > 1 and is_pyramid([tuple(o.shape) for o in outputs], image_size):
        scores = [output[:, :-_BOX_SIDES] for output in outputs]
        if all(bool(((s >= 0) & (s <= 1)).all()) for s in scores):
            return "detection"
    return "generic"


def _speaks_of_no_classes(name: str) -> bool:
    words = re.split(r"[^A-Za-z]+|(?<=[a-z])(?=[A-Z])", name)
    return any(_NO_CLASSES.fullmatch(word.lower()) for word in words)


def _is_embedding(rows: torch.Tensor) -> bool:
    """Whether rows [N, features] have length 1 and are no probabilities."""
    lengths, sums = rows.double().norm(dim=1), rows.double().sum(1)
    is_probable = bool((rows >= 0).all() and ((sums - 1).abs() < _UNIT).all())
    return bool(((lengths - 1).abs() < _UNIT).all()) and not is_probable


def is_pyramid(shapes: Sequence[tuple[int, ...]], image_size: tuple[int, int]) -> bool:
    """Whether shapes are [N, classes + 4, h, w], one stride each, in equal numbers of channels."""
    if any(len(shape) != 4 or min(shape[2:]) < 1 for shape in shapes):
        return False
    if len({shape[1] for shape in shapes}) > 1 or shapes[0][1] <= _BOX_SIDES:
        return False
    strides = [(image_size[0] / shape[2], image_size[1] / shape[3]) for shape in shapes]
    return len(set(strides)) == len(shapes) and all(
        down == across and down.is_integer() for down, across in strides
    )


def count_classes(
    task: Task, shapes: Sequence[tuple[int, ...]], image_size: tuple[int, int]
) -> int:
    """Classes that the outputs of a task tell apart; 0 where they do not tell.

    Raises:
        OutputError: the outputs are not those of the task.
    """
    shown = ", ".join(str(list(shape)) for shape in shapes)
    if task == "classification":
        if len(shapes) != 1 or len(shapes[0]) != 2:
            raise OutputError(f"returns {shown}; a classifier must return logits [images, classes]")
        return shapes[0][1]
    if task == "detection":
        if not is_pyramid(shapes, image_size):
            raise OutputError(
                f"returns {shown}; a detector must return maps [images, classes + 4, h, w], one per"
                " stride: scores in 0..1, then distances left, top, right, bottom in cells"
                ' (`task="generic"` takes any outputs)'
            )
        return shapes[0][1] - _BOX_SIDES
    if task == "segmentation":
        if not is_class_map(shapes[0]):
            raise OutputError(
                f"returns {shown}; the first output of a segmentation network must be scores [images,"
                " classes, h, w], a score of the foreground [images, 1, h, w], or classes [images, h, w]"
            )
        return max(_MIN_CLASSES, shapes[0][1]) if len(shapes[0]) == 4 else 0
    return 0


def is_class_map(shape: tuple[int, ...]) -> bool:
    """Whether a shape is that of a class, or of scores of classes, for each cell of a map."""
    return len(shape) in (3, 4) and min(shape[-2:]) > 1


def warn_of_assumptions(
    name: str, task: Task, preprocess: Preprocess, overrides: PreprocessOverrides
) -> None:
    """Say how images will be prepared, as far as nobody has said it."""
    values = {
        "layout": preprocess.layout,
        "channels": preprocess.channels,
        "mean": ",".join(f"{value:g}" for value in preprocess.mean),
        "std": ",".join(f"{value:g}" for value in preprocess.std),
    }
    assumed = [f"--{key} {text}" for key, text in values.items() if not getattr(overrides, key)]
    if assumed:
        logger.warning(
            "%s: prepared as for %s, %dx%d pixels, assumed: %s; say so if it was trained otherwise",
            name, task, *preprocess.image_size, " ".join(assumed),
        )  # fmt: skip
