"""Where Q and DQ end up: equal ones merged, and moved across layers that commute with them."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import ClassVar

from reptrt.engines.fusion_rules.network import DEQUANTIZE, FLOATS, QUANTIZE, Form, Network, Node
from reptrt.engines.fusion_rules.rule import Build, Evidence, Rule

_MOVING = frozenset(
    (
        *("Concat", "DepthToSpace", "Flatten", "Gather", "MaxPool", "Reshape", "Slice"),
        *("SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"),
    )
)


def commutes(node: Node) -> bool:
    """Whether `node` only moves or selects values, so that Q/DQ may stand on either side of it."""
    if node.op == "Resize":
        return node.text("mode", "nearest") == "nearest"
    if node.op == "MaxPool" and len(node.outputs) > 1:
        return False
    return node.op in _MOVING


def _has_constant_data(network: Network, node: Node) -> bool:
    """Whether `node` joins or selects values of a constant, which have no scale."""
    constants = (network.tensors[name] for name in node.weights)
    return node.op in ("Concat", "Gather") and any(c.dtype in FLOATS for c in constants)


class MergeEqualQuantizers(Rule):
    """A100: convolution and shortcut each quantize their input, and one QuantizeLinear is left."""

    evidence: ClassVar[Evidence] = Evidence.SEEN

    def apply(self, network: Network, build: Build) -> None:
        """Keep one of the Q, or DQ, with the same scale on the same tensor."""
        for op in (QUANTIZE, DEQUANTIZE):
            kept: dict[tuple[str, bytes, str], Node] = {}
            for node in network.in_order():
                if node.op != op:
                    continue
                first = kept.setdefault((node.inputs[0], node.scale, node.codes), node)
                if first is not node and node.outputs[0] not in network.outputs:
                    merge_into(network, node, first)


def merge_into(network: Network, node: Node, other: Node) -> None:
    """Let the readers of `node` read `other`, which writes the same values, and remove it."""
    for reader in network.readers(node.outputs[0]):
        network.rewire(reader, node.outputs[0], other.outputs[0])
    network.remove(node)


class MoveQuantizeUp(Rule):
    """Guide, "Q/DQ propagation": Q moves backward. A100: across MaxPool and Flatten.

    Across Concat it is cloned for every input (NVIDIA/TensorRT#2597). It stays where another layer
    reads the float values too (A100: the skip connection behind the first MaxPool).
    """

    evidence: ClassVar[Evidence] = Evidence.SEEN

    def apply(self, network: Network, build: Build) -> None:
        """Move each Q in front of the commuting layers that it alone reads."""
        waiting = deque(node for node in reversed(network.in_order()) if node.op == QUANTIZE)
        while waiting:
            quantize = waiting.popleft()
            source = quantize.inputs[0]
            mover = network.writer(source)
            if mover is None or not commutes(mover) or not self._may_move(network, mover):
                continue
            waiting.extend(self._move(network, mover))

    def _may_move(self, network: Network, mover: Node) -> bool:
        """Whether nothing but Q of one scale reads the outputs of `mover`."""
        scales: set[tuple[bytes, str]] = set()
        for output in mover.outputs:
            readers = network.readers(output)
            if output in network.outputs or any(node.op != QUANTIZE for node in readers):
                return False
            if any(node.outputs[0] in network.outputs for node in readers):
                return False
            scales.update((node.scale, node.codes) for node in readers)
        return len(scales) == 1 and not _has_constant_data(network, mover)

    def _move(self, network: Network, mover: Node) -> list[Node]:
        template = next(node for output in mover.outputs for node in network.readers(output))
        for output in mover.outputs:
            for quantize in network.readers(output):
                for reader in network.readers(quantize.outputs[0]):
                    network.rewire(reader, quantize.outputs[0], output)
                network.remove(quantize)
            network.set_form(output, Form(template.codes))
        moved = []
        for source in dict.fromkeys(mover.inputs):
            result = network.fresh_tensor(source, Form(template.codes))
            clone = replace(template, inputs=[source], outputs=[result], parts=[*template.parts])
            network.rewire(mover, source, result)
            network.add(clone)
            moved.append(clone)
        return moved


class MoveDequantizeDown(Rule):
    """Guide, "Q/DQ propagation": DQ moves forward; Concat wants the same scale on every input."""

    evidence: ClassVar[Evidence] = Evidence.DOCUMENTED

    def apply(self, network: Network, build: Build) -> None:
        """Let commuting layers read INT8, and put DQ behind them."""
        for node in network.in_order():
            if commutes(node) and node.inputs and not _has_constant_data(network, node):
                self._move(network, node)

    def _move(self, network: Network, mover: Node) -> None:
        writers = [network.writer(name) for name in mover.inputs]
        dequantizers = [node for node in writers if node is not None and node.op == DEQUANTIZE]
        scales = {(node.scale, node.codes) for node in dequantizers}
        if len(dequantizers) != len(writers) or len(scales) != 1:
            return
        if any(output in network.outputs for output in mover.outputs):
            return
        template = dequantizers[0]
        for node in dequantizers:
            network.rewire(mover, node.outputs[0], node.inputs[0])
        for output in mover.outputs:
            result = network.fresh_tensor(output, network.tensors[output].form)
            network.set_form(output, Form(template.codes))
            clone = replace(template, inputs=[output], outputs=[result], parts=[*template.parts])
            for reader in network.readers(output):
                network.rewire(reader, output, result)
            network.add(clone)
        for node in dict.fromkeys(dequantizers):
            drop_unread(network, node)


def drop_unread(network: Network, node: Node) -> None:
    """Remove `node` if nothing reads it."""
    if not any(network.readers(name) or name in network.outputs for name in node.outputs):
        network.remove(node)


class CancelPairs(Rule):
    """Guide: a DQ and a Q of one scale cancel; of two scales they are one requantization.

    NVIDIA/TensorRT#3861 shows it as a layer of kind Scale, Int8 to Int8.
    """

    evidence: ClassVar[Evidence] = Evidence.REPORTED

    def apply(self, network: Network, build: Build) -> None:
        """Join each Q with the DQ that it reads."""
        for quantize in network.nodes(QUANTIZE):
            dequantize = network.writer(quantize.inputs[0])
            if dequantize is None or dequantize.op != DEQUANTIZE:
                continue
            if quantize.outputs[0] in network.outputs:
                continue
            if (dequantize.scale, dequantize.codes) == (quantize.scale, quantize.codes):
                for reader in network.readers(quantize.outputs[0]):
                    network.rewire(reader, quantize.outputs[0], dequantize.inputs[0])
                network.remove(quantize)
            else:
                network.rewire(quantize, dequantize.outputs[0], dequantize.inputs[0])
                quantize.op, quantize.layer = "Requantize", "Scale"
            drop_unread(network, dequantize)
