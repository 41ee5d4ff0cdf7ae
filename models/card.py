"""How to feed a network and read its outputs."""

from __future__ import annotations

from dataclasses import dataclass

from reptrt.models.inputs import NetworkInput
from reptrt.models.spec import Preprocess, Task

Part = tuple[tuple[int, int, int], ...]
"""What one tensor of a concat fills: (axis, first, last + 1) of the result, or of several axes."""


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
        cut: tensors where the outputs are compared, in front of what sorts, selects or decides; None
            for the outputs themselves.
        parts: of each such tensor: the ranges that are compared one by one, as a concat joins them;
            none where it is one.
        stated_accuracy: top-1 or mAP 50-95 in percent that the checkpoint states; None where it states none.
        stated_inputs: what the network reads; none for one image.
    """

    model: str
    task: Task
    preprocess: Preprocess
    num_classes: int
    classes: tuple[str, ...] | None
    outputs: tuple[str, ...]
    strides: tuple[int, ...] = ()
    batch_size: int | None = None
    cut: tuple[str, ...] | None = None
    parts: tuple[tuple[Part, ...], ...] = ()
    stated_accuracy: float | None = None
    stated_inputs: tuple[NetworkInput, ...] = ()

    @property
    def inputs(self) -> tuple[NetworkInput, ...]:
        """What the network reads, in order."""
        return self.stated_inputs or self.preprocess.inputs

    @property
    def compared(self) -> tuple[str, ...]:
        """Tensors whose noise is measured."""
        return self.outputs if self.cut is None else self.cut
