"""Let layers take the constants that `RecentreActivations` adds before and subtracts behind pairs.

A convolution of x - c is the convolution of x with a bias that is smaller by c times the sum of its
weight. Where it pads, the padding must stand for 0 too: Pad with c, in front of a pair of its own.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from reptrt.engines.commuting import commutes
from reptrt.engines.surgery.base import Pass
from reptrt.engines.surgery.names import Names
from reptrt.engines.surgery.qdq import DEQUANTIZE, QUANTIZE, constant_at, input_at, producer
from reptrt.engines.surgery.repair.dequantize_bias import dequantize_constant
from reptrt.engines.surgery.repair.recentre_activations import subtract
from reptrt.engines.surgery.rewire import bypass, is_any, replace_reads

_PAD_WITH_INPUTS = 11  # the opset since which Pad takes pads and value as inputs


class AbsorbShifts(Pass):
    """Move Sub of a scalar behind DequantizeLinear down, and Add of one before QuantizeLinear up.

    Down: over operators that only move values, into the bias of Conv and Gemm, behind a MatMul,
    and against an equal Add. Up: into the bias of Conv and Gemm. The results differ by rounding in
    float only. Padded convolutions keep all 8 bits at the price of a Pad.
    """

    def apply(self, graph: gs.Graph) -> int:
        """Absorb in place; a site is a reader or a writer that took a constant."""
        walk = _Absorption(graph)
        return walk.push_down() + walk.pull_up()


class _Absorption:
    def __init__(self, graph: gs.Graph) -> None:
        self.graph, self.names = graph, Names(graph)
        self._padded: dict[tuple[str, tuple[int, ...]], gs.Tensor] = {}

    def push_down(self) -> int:
        """Take every subtraction behind a DequantizeLinear as far down as it goes."""
        absorbed = 0
        waiting = [node for node in self.graph.nodes if _is_behind_pair(node)]
        while waiting:
            sub = waiting.pop()
            values, shift = sub.inputs[0], constant_at(sub, 1)
            assert shift is not None
            for reader in list(sub.outputs[0].outputs):
                if sum(tensor is sub.outputs[0] for tensor in reader.inputs) != 1:
                    continue
                if reader.inputs[0] is not sub.outputs[0]:
                    continue
                if commutes(reader):
                    reader.inputs[0] = values
                    waiting += [
                        self._subtract(reader, i, shift) for i in range(len(reader.outputs))
                    ]
                else:
                    absorbed += self._absorb(reader, values, shift)
        self.graph.cleanup()
        return absorbed

    def pull_up(self) -> int:
        """Take every addition before a QuantizeLinear into the bias that makes its operand."""
        absorbed = 0
        for add in [node for node in self.graph.nodes if _is_before_pair(node)]:
            source, shift = add.inputs[0], constant_at(add, 1)
            layer = producer(source)
            is_only_reader = len(source.outputs) == 1 and not is_any(source, self.graph.outputs)
            if layer is None or shift is None or not is_only_reader:
                continue
            if layer.op not in {"Conv", "Gemm"}:
                continue
            weight = _weight(layer)
            if weight is None or not _has_plain_bias(layer):
                continue
            channels = weight.shape[0 if layer.op == "Conv" or layer.attrs.get("transB", 0) else 1]
            self._add_to_bias(layer, np.full(channels, float(shift)), shift.dtype)
            absorbed += bypass(self.graph, add)
        return absorbed

    def _subtract(self, node: gs.Node, index: int, shift: np.ndarray) -> gs.Node:
        subtract(self.graph, self.names, node, index, shift)
        return self.graph.nodes[-1]

    def _absorb(self, reader: gs.Node, values: gs.Tensor, shift: np.ndarray) -> bool:
        """Let `reader` read `values`, which are larger by `shift` than what it reads now."""
        if reader.op == "Add":
            return self._cancel(reader, values, shift)
        weight = _weight(reader) if reader.op in {"Conv", "Gemm", "MatMul"} else None
        if weight is None:
            return False
        if reader.op == "MatMul":
            return self._correct_product(reader, values, weight, shift)
        if not _has_plain_bias(reader):
            return False
        is_first = reader.op == "Conv" or bool(reader.attrs.get("transB", 0))
        sums = weight.astype(np.float64).sum(axis=tuple(range(1, weight.ndim)) if is_first else 0)
        if reader.op == "Conv":
            padded = self._pad(reader, values, shift)
            if padded is None:
                return False
            values = padded
        reader.inputs[0] = values
        self._add_to_bias(reader, -float(shift) * sums, shift.dtype)
        return True

    def _cancel(self, add: gs.Node, values: gs.Tensor, shift: np.ndarray) -> bool:
        other, result = constant_at(add, 1), add.outputs[0]
        if other is None or other.shape != () or other != shift:
            return False
        if is_any(result, self.graph.outputs):
            return False
        add.inputs.clear()
        replace_reads(result, values)
        return True

    def _correct_product(
        self, matmul: gs.Node, values: gs.Tensor, weight: np.ndarray, shift: np.ndarray
    ) -> bool:
        if weight.ndim != 2:
            return False
        matmul.inputs[0] = values
        offset = float(shift) * weight.astype(np.float64).sum(axis=0)
        self._subtract(matmul, 0, offset.astype(shift.dtype))
        return True

    def _pad(self, conv: gs.Node, values: gs.Tensor, shift: np.ndarray) -> gs.Tensor | None:
        """What `conv` must read: `values`, or those with `shift` around; None where unknown."""
        if str(conv.attrs.get("auto_pad", "NOTSET")) not in {"NOTSET", "VALID"}:
            return None
        own = tuple(int(count) for count in conv.attrs.get("pads", ()))
        if not any(own) or conv.attrs.get("auto_pad") == "VALID":
            return values
        if self.graph.opset < _PAD_WITH_INPUTS:
            return None
        key = (values.name, own)
        if key not in self._padded:
            self._padded[key] = self._padded_pair(values, own, shift)
        conv.attrs["pads"] = [0] * len(own)
        return self._padded[key]

    def _padded_pair(self, values: gs.Tensor, own: tuple[int, ...], shift: np.ndarray) -> gs.Tensor:
        """Pad -> Q -> DQ on the grid of `values`, from what its pair reads where that is near."""
        dequantize = producer(values)
        while dequantize is not None and dequantize.op != DEQUANTIZE:
            dequantize = producer(dequantize.inputs[0])
        assert dequantize is not None
        quantize = producer(dequantize.inputs[0])
        is_near = dequantize.outputs[0] is values and quantize is not None
        source = quantize.inputs[0] if is_near and quantize is not None else values
        half, stem, fresh = len(own) // 2, values.name, self.names.fresh
        pads = np.array([0, 0, *own[:half], 0, 0, *own[half:]], np.int64)
        padded = gs.Variable(fresh(f"{stem}_padded"), source.dtype or shift.dtype)
        codes = gs.Variable(fresh(f"{stem}_padded_codes"), np.int8)
        result = gs.Variable(fresh(f"{stem}_padded_dequantized"), values.dtype)
        constants = [
            self.names.constant(f"{stem}_pads", pads),
            self.names.constant(f"{stem}_pad_value", shift),
        ]
        grid = dequantize.inputs[1:]
        self.graph.nodes += [
            gs.Node("Pad", fresh(f"{stem}_pad"), inputs=[source, *constants], outputs=[padded]),
            gs.Node(QUANTIZE, fresh(f"{stem}_pad_q"), inputs=[padded, *grid], outputs=[codes]),
            gs.Node(DEQUANTIZE, fresh(f"{stem}_pad_dq"), inputs=[codes, *grid], outputs=[result]),
        ]
        return result

    def _add_to_bias(self, layer: gs.Node, extra: np.ndarray, dtype: np.dtype) -> None:
        """Give `layer` a bias of its own, [channels], that is larger by `extra`."""
        old = constant_at(layer, 2)
        dtype = dtype if old is None else old.dtype
        total = extra if old is None else old.astype(np.float64) + extra
        bias = self.names.constant(f"{layer.outputs[0].name}_bias", total.astype(dtype))
        layer.inputs = [*layer.inputs[:2], bias]


def _is_behind_pair(node: gs.Node) -> bool:
    if node.op != "Sub" or _scalar(node) is None:
        return False
    writer = producer(node.inputs[0])
    return writer is not None and writer.op == DEQUANTIZE


def _is_before_pair(node: gs.Node) -> bool:
    if node.op != "Add" or _scalar(node) is None:
        return False
    readers = node.outputs[0].outputs
    return bool(readers) and all(reader.op in {QUANTIZE, "Pad"} for reader in readers)


def _scalar(node: gs.Node) -> np.ndarray | None:
    operand = constant_at(node, 1)
    return operand if operand is not None and operand.shape == () else None


def _has_plain_bias(layer: gs.Node) -> bool:
    """Whether the bias of a Conv or Gemm is one constant per channel, or absent."""
    if layer.op == "Gemm" and (
        layer.attrs.get("transA", 0)
        or layer.attrs.get("alpha", 1.0) != 1
        or layer.attrs.get("beta", 1.0) != 1
    ):
        return False
    bias = constant_at(layer, 2)
    return input_at(layer, 2) is None or (bias is not None and bias.ndim == 1)


def _weight(layer: gs.Node) -> np.ndarray | None:
    """The constant weight of a layer, dequantized, or None."""
    direct = constant_at(layer, 1)
    if direct is not None:
        return direct
    node = producer(layer.inputs[1])
    while node is not None and node.op == "Cast":
        node = producer(node.inputs[0])
    if node is None or node.op != DEQUANTIZE:
        return None
    codes = constant_at(node, 0)
    return None if codes is None else dequantize_constant(codes, node)
