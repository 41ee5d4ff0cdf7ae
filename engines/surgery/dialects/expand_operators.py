"""ONNX Runtime's QOperator format, whose operators read and write codes, as Q/DQ around float ones.

Inputs as in ONNX (QLinearConv, QLinearMatMul) and in ONNX Runtime's list of contributed operators.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from reptrt.engines.surgery.base import Pass
from reptrt.engines.surgery.names import Names
from reptrt.engines.surgery.qdq import DEQUANTIZE, QUANTIZE, constant_at, input_at, nodes_of

_CONTRIBUTED = "com.microsoft"
_AXES_ARE_INPUT = 18
_SOFTMAX_OF_ONE_AXIS = 13


@dataclass(frozen=True)
class _Form:
    """Where an operator on codes has what; each operand is codes, scale and zero point in a row.

    Attributes:
        op: that computes the same in float.
        operands: index of the codes of each operand.
        result: index of the result's scale, which its zero point follows.
        bias: index of int32 codes on the grid of the product; None for no bias.
        passed: indices of inputs that are no codes, and come first.
    """

    op: str
    operands: tuple[int, ...]
    result: int
    bias: int | None = None
    passed: tuple[int, ...] = ()


_FORMS = {
    "QLinearConv": _Form("Conv", (0, 3), 6, bias=8),
    "QLinearMatMul": _Form("MatMul", (0, 3), 6),
    "QGemm": _Form("Gemm", (0, 3), 7, bias=6),
    "QLinearAdd": _Form("Add", (0, 3), 6),
    "QLinearMul": _Form("Mul", (0, 3), 6),
    "QLinearWhere": _Form("Where", (1, 4), 7, passed=(0,)),
    "QLinearAveragePool": _Form("AveragePool", (0,), 3),
    "QLinearGlobalAveragePool": _Form("GlobalAveragePool", (0,), 3),
    "QLinearLeakyRelu": _Form("LeakyRelu", (0,), 3),
    "QLinearReduceMean": _Form("ReduceMean", (0,), 3),
    "QLinearSigmoid": _Form("Sigmoid", (0,), 3),
    "QLinearSoftmax": _Form("Softmax", (0,), 3),
}
_CONCAT = "QLinearConcat"
_SUFFIX = "_quant"


def can_expand(node: gs.Node) -> bool:
    """Whether `ExpandOperators` writes `node`, which computes on codes, as pairs."""
    if node.attrs.get("channels_last", 0):
        return False
    if node.op == "QLinearSoftmax" and node.attrs.get("opset", 13) < _SOFTMAX_OF_ONE_AXIS:
        return bool(node.attrs.get("axis", -1) == -1)  # before, all axes from it on were one
    if node.op == _CONCAT:
        return True
    form = _FORMS.get(node.op)
    if form is None:
        return False
    scales = [constant_at(node, index + 1) for index in form.operands]
    if any(scale is None for scale in scales) or scales[0].size != 1:  # type: ignore[union-attr]
        return False
    has_bias = form.bias is not None and input_at(node, form.bias) is not None
    return not has_bias or constant_at(node, form.bias or 0) is not None


class ExpandOperators(Pass):
    """DequantizeLinear before, QuantizeLinear behind: QLinearConv becomes DQ -> Conv -> Q.

    A bias in int32 becomes the float constant that it stands for. ONNX Runtime's own Q and DQ become
    ONNX's.
    """

    def apply(self, graph: gs.Graph) -> int:
        """Expand in place; a site is an operator."""
        expansion, expanded = _Expansion(graph), 0
        for node in nodes_of(graph, QUANTIZE, DEQUANTIZE):
            if node.domain == _CONTRIBUTED:
                node.domain = None
                expanded += 1
        for node in [node for node in graph.nodes if can_expand(node)]:
            expansion.expand(node)
            expanded += 1
        return expanded


class _Expansion:
    def __init__(self, graph: gs.Graph) -> None:
        self.graph, self.names = graph, Names(graph)
        self._floats: dict[tuple[int, str, str], gs.Tensor] = {}

    def expand(self, node: gs.Node) -> None:
        """Make `node` the float operator, in place: its name and its attributes stay."""
        if node.op == _CONCAT:
            operands = range(2, len(node.inputs), 3)
            floats = [self._dequantize(node, index, None) for index in operands]
            self._quantize(node, 0)
            node.op, node.inputs = "Concat", floats
        else:
            form = _FORMS[node.op]
            floats = [node.inputs[index] for index in form.passed]
            floats += [
                self._dequantize(node, index, _weight_axis(node, form, place))
                for place, index in enumerate(form.operands)
            ]
            floats += self._bias(node, form)
            self._quantize(node, form.result)
            node.op, node.inputs = form.op, floats
            if node.op == "ReduceMean" and self.graph.opset >= _AXES_ARE_INPUT:
                axes = np.array(node.attrs.pop("axes"), np.int64)
                node.inputs.append(self.names.constant(f"{node.name}_axes", axes))
        node.domain = None
        node.name = self._layer_name(node.name)
        for name in ("channels_last", "opset"):
            node.attrs.pop(name, None)

    def _layer_name(self, name: str) -> str:
        """The name of the float layer, to which ONNX Runtime's quantizer adds a suffix."""
        layer = name.removesuffix(_SUFFIX)
        return self.names.fresh(layer) if layer and layer != name else name

    def _dequantize(self, node: gs.Node, index: int, axis: int | None) -> gs.Tensor:
        """The float values of the operand whose codes are input `index`."""
        codes, scale = node.inputs[index], node.inputs[index + 1]
        zero_point = input_at(node, index + 2)
        key = (id(codes), scale.name, "" if zero_point is None else zero_point.name)
        if key not in self._floats:
            stem = codes.name
            values = gs.Variable(self.names.fresh(f"{stem}_float"), np.float32, codes.shape)
            inputs = [codes, *self._grid(stem, scale, zero_point, codes.dtype)]
            attrs = {} if axis is None or _size(inputs[1]) == 1 else {"axis": axis}
            name = self.names.fresh(f"{stem}_dequantize")
            self.graph.nodes.append(gs.Node(DEQUANTIZE, name, attrs, inputs, [values]))
            self._floats[key] = values
        return self._floats[key]

    def _quantize(self, node: gs.Node, index: int) -> None:
        """Put a QuantizeLinear behind `node` on the grid at input `index`; without one it writes floats."""
        scale, zero_point = input_at(node, index), input_at(node, index + 1)
        if scale is None:
            return
        codes = node.outputs[0]
        stem = codes.name
        values = gs.Variable(self.names.fresh(f"{stem}_float"), np.float32, codes.shape)
        grid = self._grid(stem, scale, zero_point, codes.dtype)
        codes.dtype = np.dtype(grid[1].dtype)
        node.outputs = [values]
        name = self.names.fresh(f"{stem}_quantize")
        self.graph.nodes.append(gs.Node(QUANTIZE, name, {}, [values, *grid], [codes]))

    def _grid(
        self, stem: str, scale: gs.Tensor, zero_point: gs.Tensor | None, dtype: object
    ) -> list[gs.Tensor]:
        """Scale and zero point as Q and DQ want them: both there, numbers without axes where they are one."""
        if not isinstance(scale, gs.Constant):
            return [scale] if zero_point is None else [scale, zero_point]
        steps = np.asarray(scale.values)
        steps = steps.reshape(()) if steps.size == 1 else steps.ravel()
        if zero_point is None:
            zeros = np.zeros(steps.shape, np.uint8 if dtype is None else np.dtype(dtype))  # type: ignore[call-overload]
        elif not isinstance(zero_point, gs.Constant):
            return [scale, zero_point]
        else:
            zeros = np.broadcast_to(np.asarray(zero_point.values).squeeze(), steps.shape)
        return [
            self.names.constant(f"{stem}_scale", steps),
            self.names.constant(f"{stem}_zero_point", np.array(zeros)),
        ]

    def _bias(self, node: gs.Node, form: _Form) -> list[gs.Tensor]:
        """The float bias, if there is one; its grid is that of the product, with zero point 0."""
        codes = None if form.bias is None else constant_at(node, form.bias)
        if codes is None:
            return []
        first, second = (constant_at(node, index + 1) for index in form.operands)
        assert first is not None
        assert second is not None
        step = first.astype(np.float32).reshape(()) * second.astype(np.float32).squeeze()
        values = codes.astype(np.float32) * np.float32(node.attrs.get("alpha", 1.0)) * step
        return [self.names.constant(f"{node.outputs[0].name}_bias", values)]


def _weight_axis(node: gs.Node, form: _Form, place: int) -> int | None:
    """The axis of the output channels of a weight; None for what has one scale."""
    if place == 0 or form.op not in ("Conv", "Gemm", "MatMul"):
        return None
    if form.op == "Conv" or node.attrs.get("transB", 0):
        return 0
    codes: Sequence[int] = node.inputs[form.operands[place]].shape or (0, 0)
    return len(codes) - 1


def _size(tensor: gs.Tensor) -> int:
    return int(np.asarray(tensor.values).size) if isinstance(tensor, gs.Constant) else 1
