"""Codes at the borders of a quantized file, as converters from TensorFlow Lite leave them, as pixels and floats.

Such a file takes the codes of its first grid and returns those of its last one. A picture is then given as its
pixels 0..255, which are these codes (int8 codes are 128 less); outputs are what their codes stand for.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

_CODES = (TensorProto.UINT8, TensorProto.INT8)
_MOVING = {"Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
_PICTURE_AXES = 4
_MIDDLE = 128  # pixel whose int8 code is 0


class _Grid(NamedTuple):
    """Names of a scale and of a zero point, both of a single number, and the values."""

    scale: str
    zero_point: str
    step: float
    zero: int


def write_float_borders(proto: onnx.ModelProto) -> None:
    """Let `proto` compute the codes that it takes, and dequantize those that it returns, in place."""
    graph = proto.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for value in graph.input:
        if value.name not in constants and value.type.tensor_type.elem_type in _CODES:
            grid = _grid_behind(graph, value.name, constants)
            if grid is not None:
                _quantize_input(graph, value, grid)
    for value in graph.output:
        if value.type.tensor_type.elem_type in _CODES:
            grid = _grid_before(graph, value.name, constants)
            if grid is not None:
                _dequantize_output(graph, value, grid)


def _grid(node: onnx.NodeProto, constants: dict[str, TensorProto]) -> _Grid | None:
    if len(node.input) < 3 or any(name not in constants for name in node.input[1:3]):
        return None
    scale, zero = (numpy_helper.to_array(constants[name]) for name in node.input[1:3])
    if scale.size != 1 or zero.size != 1:
        return None
    return _Grid(node.input[1], node.input[2], float(scale.item()), int(zero.item()))


def _grid_behind(
    graph: onnx.GraphProto, name: str, constants: dict[str, TensorProto]
) -> _Grid | None:
    """The grid of all that reads codes `name`, moved or not; None where something else reads them."""
    moved, grids = {name}, set[_Grid | None]()
    for node in graph.node:
        if moved.isdisjoint(node.input):
            continue
        if node.op_type in _MOVING and node.input[0] in moved:
            moved.update(node.output)
        else:
            grids.add(_grid(node, constants) if node.op_type == "DequantizeLinear" else None)
    is_output = any(value.name in moved for value in graph.output)
    return grids.pop() if len(grids) == 1 and not is_output else None


def _grid_before(
    graph: onnx.GraphProto, name: str, constants: dict[str, TensorProto]
) -> _Grid | None:
    makers = {output: node for node in graph.node for output in node.output}
    node = makers.get(name)
    while node is not None and node.op_type in _MOVING:
        node = makers.get(node.input[0])
    return _grid(node, constants) if node is not None and node.op_type == "QuantizeLinear" else None


def _quantize_input(graph: onnx.GraphProto, value: onnx.ValueInfoProto, grid: _Grid) -> None:
    name, tensor = value.name, value.type.tensor_type
    is_shifted = tensor.elem_type == TensorProto.INT8 and len(tensor.shape.dim) == _PICTURE_AXES
    zero = grid.zero + _MIDDLE * is_shifted
    if is_shifted:
        tensor.elem_type = TensorProto.UINT8
    for node in graph.node:
        node.input[:] = [f"{name}/codes" if read == name else read for read in node.input]
    graph.initializer.append(_number(np.float32(zero), f"{name}/zero"))
    graph.initializer.append(_number(np.float32(grid.step), f"{name}/step"))
    made = [
        helper.make_node("Cast", [name], [f"{name}/float"], f"{name}/cast", to=TensorProto.FLOAT),
        helper.make_node("Sub", [f"{name}/float", f"{name}/zero"], [f"{name}/centred"], f"{name}/sub"),
        helper.make_node("Mul", [f"{name}/centred", f"{name}/step"], [f"{name}/values"], f"{name}/mul"),
        helper.make_node(
            "QuantizeLinear", [f"{name}/values", grid.scale, grid.zero_point], [f"{name}/codes"],
            f"{name}/quantize",
        ),
    ]  # fmt: skip
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*made, *rest])


def _dequantize_output(graph: onnx.GraphProto, value: onnx.ValueInfoProto, grid: _Grid) -> None:
    name = value.name
    for node in graph.node:
        node.input[:] = [f"{name}/codes" if read == name else read for read in node.input]
        node.output[:] = [f"{name}/codes" if made == name else made for made in node.output]
    inputs = [f"{name}/codes", grid.scale, grid.zero_point]
    graph.node.append(helper.make_node("DequantizeLinear", inputs, [name], f"{name}/dequantize"))
    value.type.tensor_type.elem_type = TensorProto.FLOAT


def _number(value: np.float32, name: str) -> TensorProto:
    array: NDArray[np.float32] = np.array(value)
    return numpy_helper.from_array(array, name)
