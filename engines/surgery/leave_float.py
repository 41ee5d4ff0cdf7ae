"""Take layers out of INT8: a copy of a Q/DQ graph in which some of its layers stay float."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
import onnx_graphsurgeon as gs

from reptrt.engines.commuting import commutes
from reptrt.engines.surgery.base import Pass
from reptrt.engines.surgery.names import Names
from reptrt.engines.surgery.qdq import DEQUANTIZE, QUANTIZE, nodes_of, producer
from reptrt.engines.surgery.repair.dequantize_bias import dequantize_constant
from reptrt.engines.surgery.rewire import is_any, replace_reads

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_LAYOUT = ("Cast", "Reshape", "Transpose")
_POOLS = ("AveragePool", "GlobalAveragePool", "ReduceMean")


class LeaveFloat(Pass):
    """Give the named layers float weights, and drop each Q/DQ pair that no INT8 layer needs then.

    A pair is needed by a quantized layer that reads it, also through operators that move values; by a
    product of two activations; by an addition behind a quantized layer, whose skip is then INT8; and by
    an average pool whose result a quantized layer reads.

    Args:
        layers: names of Conv, ConvTranspose, Gemm and MatMul nodes, as TensorRT reports them.
        pools: whether average pools keep their pairs.
    """

    def __init__(self, layers: Collection[str], *, pools: bool = True) -> None:
        self._layers, self._pools = frozenset(layers), pools

    def apply(self, graph: gs.Graph) -> int:
        """Rewrite in place; a site is a layer or a pair."""
        names, changed = Names(graph), 0
        for node in nodes_of(graph, *WEIGHTED):
            if _name(node) in self._layers:
                changed += self._float_weight(names, node)
        for dequantize in nodes_of(graph, DEQUANTIZE):
            quantize = producer(dequantize.inputs[0])
            if (
                quantize is None
                or quantize.op != QUANTIZE
                or is_any(dequantize.outputs[0], graph.outputs)
            ):
                continue
            if not any(map(self._needs_codes, _readers(dequantize.outputs[0]))):
                changed += _bypass_pair(graph, names, quantize, dequantize)
        return changed

    def _float_weight(self, names: Names, node: gs.Node) -> int:
        """Fold the DequantizeLinear of its weight; 0 where there is none, or an INT8 layer reads it."""
        for tensor in node.inputs[:2]:
            dequantize = _behind_layout(tensor)
            if dequantize is None or dequantize.op != DEQUANTIZE:
                continue
            codes, target = dequantize.inputs[0], dequantize.outputs[0]
            if not isinstance(codes, gs.Constant) or any(map(self._needs_codes, _readers(target))):
                continue
            values = dequantize_constant(np.asarray(codes.values), dequantize)
            dtype = target.dtype or values.dtype
            weight = names.constant(f"{_name(node)}_float", values.astype(dtype))
            replace_reads(target, weight)
            return 1
        return 0

    def _needs_codes(self, reader: gs.Node) -> bool:
        if reader.op in _POOLS:
            return self._pools and any(map(self._needs_codes, _behind_pairs(reader)))
        if reader.op in WEIGHTED:
            has_weight = any(_is_weight(tensor) for tensor in reader.inputs[:2])
            return not has_weight or _name(reader) not in self._layers
        if reader.op != "Add":
            return False
        makers = [maker for tensor in reader.inputs for maker in _makers(tensor)]
        return any(maker.op in WEIGHTED and _name(maker) not in self._layers for maker in makers)


def _bypass_pair(graph: gs.Graph, names: Names, quantize: gs.Node, dequantize: gs.Node) -> int:
    """Let the pair's readers read what it quantizes."""
    source, target = quantize.inputs[0], dequantize.outputs[0]
    if source.dtype is not None and target.dtype is not None and source.dtype != target.dtype:
        to = gs.Variable(names.fresh(f"{source.name}_as_read"), target.dtype, source.shape)
        kind = 10 if target.dtype == np.float16 else 1  # TensorProto.FLOAT16, FLOAT
        name = names.fresh(f"{source.name}_cast")
        graph.nodes.append(gs.Node("Cast", name, {"to": kind}, [source], [to]))
        source = to
    replace_reads(target, source)
    return 1


def _readers(tensor: gs.Tensor) -> Iterator[gs.Node]:
    """What computes with `tensor`, behind casts and operators that move values."""
    for node in tensor.outputs:
        if node.op in ("Cast", "Concat") or commutes(node):
            for output in node.outputs:
                yield from _readers(output)
        else:
            yield node


def _behind_pairs(node: gs.Node) -> Iterator[gs.Node]:
    """What computes with the result of `node` behind a Q/DQ pair."""
    for quantize in _readers(node.outputs[0]):
        if quantize.op == QUANTIZE:
            for dequantize in quantize.outputs[0].outputs:
                yield from _readers(dequantize.outputs[0])


def _makers(tensor: gs.Tensor) -> Iterator[gs.Node]:
    """What computes `tensor`, before casts, operators that move values, and a ReLU; not behind Q/DQ."""
    node = producer(tensor)
    if node is None:
        return
    if node.op in ("Cast", "Relu", "Concat") or commutes(node):
        for source in node.inputs[:1] if node.op != "Concat" else node.inputs:
            yield from _makers(source)
    else:
        yield node


def _is_weight(tensor: gs.Tensor) -> bool:
    """Whether it is a constant, or what casts, moves or dequantizes one."""
    node = producer(tensor)
    while node is not None and node.op in (*_LAYOUT, DEQUANTIZE):
        tensor = node.inputs[0]
        node = producer(tensor)
    return isinstance(tensor, gs.Constant)


def _behind_layout(tensor: gs.Tensor) -> gs.Node | None:
    node = producer(tensor)
    while node is not None and node.op in _LAYOUT:
        node = producer(node.inputs[0])
    return node


def _name(node: gs.Node) -> str:
    """The name that TensorRT reports."""
    return str(node.name or f"node_of_{node.outputs[0].name}")
