"""How to feed a network and read its outputs."""

from __future__ import annotations

from dataclasses import dataclass

from reptrt.models.spec import Preprocess, Task


@dataclass(frozen=True)
class ModelCard:
    """Contract of a network.

    Attributes:
        model: name that the user gave.
        task: what the outputs mean.
        preprocess: how images become the input `images`.
        num_classes: classes that the head tells apart.
        classes: their names in the order of the outputs, None when nobody named them.
        outputs: names of the graph outputs in order.
        strides: of a detector's outputs, in pixels per cell; empty for a classifier.
        batch_size: that the files are made for; None for any.
        stated_accuracy: top-1 or mAP 50-95 in percent that the checkpoint states; None where it states none.
    """

    model: str
    task: Task
    preprocess: Preprocess
    num_classes: int
    classes: tuple[str, ...] | None
    outputs: tuple[str, ...]
    strides: tuple[int, ...] = ()
    batch_size: int | None = None
    stated_accuracy: float | None = None
