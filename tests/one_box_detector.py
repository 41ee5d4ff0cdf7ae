"""A detector in a few ONNX nodes that finds one box, whatever it is shown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from reptrt.models.card import ModelCard
from reptrt.pipeline.model_card import write_card


def write_detector(
    path: Path, score: float, card: ModelCard | None = None, batch: str = "N"
) -> None:
    """A box from 4, 4 to 12, 12 of class 0 on every image of 16 x 16 pixels."""
    cells = np.zeros((1, 5, 2, 2), dtype=np.float32)
    cells[0, 0, 0, 0] = score
    cells[0, 1:, 0, 0] = (0.0, 0.0, 1.0, 1.0)
    model = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["": 19]>
        toy (float[{batch},3,16,16] images) => (float[{batch},5,2,2] p3)
        <float zero = {{0}}> {{
            small = AveragePool <kernel_shape = [8, 8], strides = [8, 8]> (images)
            one = ReduceMean <keepdims = 1> (small, channel)
            nothing = Mul (one, zero)
            p3 = Add (nothing, cells)
        }}""")
    model.graph.initializer.append(numpy_helper.from_array(cells, "cells"))
    model.graph.initializer.append(numpy_helper.from_array(np.array([1]), "channel"))
    if card is not None:
        write_card(card, model)
    onnx.save(model, path)
