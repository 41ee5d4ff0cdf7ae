"""An exported file with the usual size in the place of open sides: what is priced for one size."""

from __future__ import annotations

from pathlib import Path

import onnx

from reptrt.models.card import ModelCard


def fix_sides(path: Path, card: ModelCard) -> None:
    """Fix every open side of the inputs of `path` to its usual size, in place; the batch stays."""
    usual = {one.name: one for one in card.inputs if one.open_sides}
    if not usual:
        return
    model = onnx.load(path)
    for value in model.graph.input:
        one = usual.get(value.name)
        sides = list(value.type.tensor_type.shape.dim)
        for side, size in zip(sides[one.batched :], one.sides, strict=True) if one else ():
            side.dim_value = size
    for value in model.graph.output:
        for side in value.type.tensor_type.shape.dim:
            if side.dim_param != "batch":
                side.Clear()
    del model.graph.value_info[:]
    onnx.save(model, path)
