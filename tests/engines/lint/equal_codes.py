"""Compare a repaired Q/DQ model with the original, layer by layer on equal codes.

A *step* is a step of the original's own grids: one integer code. Every layer of the repaired model
reads the codes that the original computed, so that no difference is passed on from layer to layer.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from tests.onnx_codes import FORCED, force_codes, quantize_nodes, session

PADDED = "_shifted_padded_codes"  # what AbsorbShifts calls the codes of a padded pair


def computed_codes(model: onnx.ModelProto, images: NDArray[np.float32]) -> dict[str, NDArray]:
    """Codes of every QuantizeLinear by name, those of uint8 less 128."""
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    constants = {t.name: t for t in model.graph.initializer}
    for node in quantize_nodes(shown):
        kind = constants[node.input[2]].data_type
        shown.graph.output.append(helper.make_tensor_value_info(node.output[0], kind, None))
    names = [node.output[0] for node in quantize_nodes(model)]
    values = session(shown, optimized=False).run(names, {model.graph.input[0].name: images})
    return {
        n: v.astype(int) - 128 * (v.dtype == np.uint8) for n, v in zip(names, values, strict=True)
    }


def differences(
    original: onnx.ModelProto, repaired: onnx.ModelProto, images: NDArray[np.float32]
) -> dict[str, NDArray[np.int64]]:
    """How many steps each code of `repaired` is off, by the original's name of its tensor."""
    codes = computed_codes(original, images)
    constants = {t.name: numpy_helper.to_array(t) for t in original.graph.initializer}
    quantizers = {node.output[0]: node for node in quantize_nodes(original)}
    behind = {
        node.output[0]: node.input[0]
        for node in original.graph.node
        if node.op_type == "DequantizeLinear"
    }
    fed, origin, inner = {}, {}, {}
    pads = {node.output[0]: node for node in repaired.graph.node if node.op_type == "Pad"}
    sizes = {t.name: numpy_helper.to_array(t) for t in repaired.graph.initializer}
    for node in quantize_nodes(repaired):
        name = node.output[0]
        origin[name] = name if name in codes else behind[name.removesuffix(PADDED)]
        zero = constants[quantizers[origin[name]].input[2]]
        centre = int(zero) - 128 * (zero.dtype == np.uint8)
        begins, ends = np.zeros(4, int), np.zeros(4, int)
        if name.endswith(PADDED):
            begins, ends = np.split(sizes[pads[node.input[0]].input[1]], 2)
        values = codes[origin[name]]
        widths = list(zip(begins, ends, strict=True))[: values.ndim]
        fed[name] = np.pad(values, widths, constant_values=centre).astype(np.int8)
        inner[name] = tuple(
            slice(begin, begin + side)
            for (begin, _), side in zip(widths, values.shape, strict=True)
        )
    run = session(force_codes(repaired), optimized=False).run
    wanted = [name + FORCED for name in fed]
    actual = run(wanted, {repaired.graph.input[0].name: images, **fed})
    return {
        origin[name]: np.abs(value[inner[name]].astype(int) - codes[origin[name]])
        for name, value in zip(fed, actual, strict=True)
    }
