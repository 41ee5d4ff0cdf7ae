"""Take out operators that return their input unchanged."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from reptrt.engines.surgery.base import Pass
from reptrt.engines.surgery.qdq import constant_at, input_at, producer
from reptrt.engines.surgery.rewire import bypass
from reptrt.engines.surgery.value_range import clip_bounds


class DropNoOps(Pass):
    """Bypass every node whose output provably equals its first input.

    What needs shapes (Reshape, Slice, Expand, ...) is only dropped where shapes are known.
    """

    def apply(self, graph: gs.Graph) -> int:
        """Drop in place; a site is a node."""
        dropped = 0
        for node in list(graph.nodes):
            if node.op == "Cast":
                _read_before_widening(node)
            does_nothing = _RULES.get(node.op)
            if does_nothing is not None and does_nothing(node) and bypass(graph, node):
                dropped += 1
        return dropped


def _read_before_widening(cast: gs.Node) -> None:
    """Let a cast that undoes a widening one (half -> float -> half) read the narrow tensor."""
    widening = producer(cast.inputs[0])
    if widening is None or widening.op != "Cast" or widening.inputs[0].dtype != np.float16:
        return
    if _target_type(widening) == np.float32 and _target_type(cast) == np.float16:
        cast.inputs[0] = widening.inputs[0]


def _target_type(cast: gs.Node) -> np.dtype:
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(cast.attrs["to"]))


def _always(node: gs.Node) -> bool:
    return True


def _is_inference_dropout(node: gs.Node) -> bool:
    training = constant_at(node, 2)
    return input_at(node, 2) is None or (training is not None and not training.any())


def _keeps_type(node: gs.Node) -> bool:
    dtype = node.inputs[0].dtype
    return dtype is not None and not isinstance(dtype, int) and dtype == _target_type(node)


def _keeps_shape(node: gs.Node) -> bool:
    before, after = node.inputs[0].shape, node.outputs[0].shape
    if before is None or after is None or None in before:
        return False
    return list(before) == list(after)


def _keeps_order(node: gs.Node) -> bool:
    perm = node.attrs.get("perm")
    return perm is not None and list(perm) == list(range(len(perm)))


def _pads_nothing(node: gs.Node) -> bool:
    pads = constant_at(node, 1)
    return pads is not None and not pads.any()


def _takes_everything(node: gs.Node) -> bool:
    """A forward Slice with steps of 1 that keeps the shape, or spans all of a dynamic axis."""
    starts, ends, steps = constant_at(node, 1), constant_at(node, 2), constant_at(node, 4)
    if starts is None or ends is None or (input_at(node, 4) is not None and steps is None):
        return False
    if steps is not None and (steps != 1).any():
        return False
    return _keeps_shape(node) or (not starts.any() and bool((ends >= 2**31 - 1).all()))


def _has_no_bounds(node: gs.Node) -> bool:
    low, high = clip_bounds(node)
    largest = float(np.finfo(np.float32).max)
    return low <= -largest and high >= largest


def _has_one_input(node: gs.Node) -> bool:
    return len(node.inputs) == 1


def _is_neutral(value: float) -> Callable[[gs.Node], bool]:
    """A rule for x + 0, x - 0, x * 1, x / 1 with a scalar that does not broadcast x."""

    def rule(node: gs.Node) -> bool:
        operand = constant_at(node, 1)
        return operand is not None and operand.ndim == 0 and bool(operand == value)

    return rule


_RULES: dict[str, Callable[[gs.Node], bool]] = {
    "Add": _is_neutral(0.0),
    "Cast": _keeps_type,
    "Clip": _has_no_bounds,
    "Concat": _has_one_input,
    "Div": _is_neutral(1.0),
    "Dropout": _is_inference_dropout,
    "Expand": _keeps_shape,
    "Flatten": _keeps_shape,
    "Identity": _always,
    "Mul": _is_neutral(1.0),
    "Pad": _pads_nothing,
    "Reshape": _keeps_shape,
    "Slice": _takes_everything,
    "Squeeze": _keeps_shape,
    "Sub": _is_neutral(0.0),
    "Transpose": _keeps_order,
    "Unsqueeze": _keeps_shape,
}
