"""Which layers take the DQ before them and the Q behind them, and so run in INT8."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from reptrt.engines.fusion_rules.convolutions import (
    has_quantized_weights,
    is_depthwise,
    is_product,
)
from reptrt.engines.fusion_rules.network import DEQUANTIZE, QUANTIZE, Form, Network, Node
from reptrt.engines.fusion_rules.quantizers import drop_unread
from reptrt.engines.fusion_rules.rule import Build, Evidence, Rule


def dequantizer(network: Network, tensor: str) -> Node | None:
    """The DQ that writes `tensor`, or None."""
    writer = network.writer(tensor)
    return writer if writer is not None and writer.op == DEQUANTIZE else None


def read_codes(network: Network, node: Node, tensor: str) -> None:
    """Let `node` read what the DQ before `tensor` reads."""
    dequantize = dequantizer(network, tensor)
    if dequantize is not None:
        network.rewire(node, tensor, dequantize.inputs[0])
        drop_unread(network, dequantize)


def write_codes(network: Network, node: Node) -> bool:
    """Let `node` compute the Q that alone reads it; return whether there is one."""
    quantize = network.only_reader(node.outputs[0])
    if quantize is None or quantize.op != QUANTIZE or len(node.outputs) != 1:
        return False
    network.absorb_reader(node, quantize)
    network.set_form(node.outputs[0], Form(quantize.codes))
    return True


class QuantizeProducts(Rule):
    """Guide, "Q/DQ fusion": convolution with both operands behind DQ is INT8; a Q behind it joins.

    A100, TITAN RTX: Int8 to Int8 with Q, to Half without; depthwise (TITAN RTX) Int8 to Int8. The
    Q joins only if the skip is INT8 too (A100); a ConvTranspose takes none
    (NVIDIA/TensorRT#2597). That groups of channels that are no multiples of 4 stay float is
    assumed.
    """

    evidence: ClassVar[Evidence] = Evidence.SEEN

    def apply(self, network: Network, build: Build) -> None:
        """Let quantized convolutions and products read, and where they can write, INT8."""
        for node in network.nodes("Conv", "ConvTranspose", "Gemm", "MatMul"):
            if not is_product(node) or not has_quantized_weights(network, node):
                continue
            if not self._is_int8(network, node):
                self._dequantize_weights(network, node)
                continue
            joins = node.op != "ConvTranspose"
            if node.skip:
                joins = dequantizer(network, node.skip) is not None
            if joins and write_codes(network, node) and node.skip:
                read_codes(network, node, node.skip)
            self._read_codes(network, node)

    def _read_codes(self, network: Network, node: Node) -> None:
        """Let the product read INT8; a float skip may be the same tensor, and stays float."""
        dequantize = dequantizer(network, node.inputs[0])
        if dequantize is not None:
            network.remove(node)
            node.inputs[0] = dequantize.inputs[0]
            network.add(node)
            drop_unread(network, dequantize)

    def _dequantize_weights(self, network: Network, node: Node) -> None:
        """The engine stores the weights of a float product in float."""
        weight = network.tensors[node.weights[0]]
        dtype = network.tensors[node.outputs[0]].dtype
        stored = network.fresh_tensor(weight.name, Form(dtype))
        network.tensors[stored] = replace(network.tensors[stored], is_constant=True)
        node.weights = [stored, *node.weights[1:]]

    def _is_int8(self, network: Network, node: Node) -> bool:
        source = dequantizer(network, node.inputs[0])
        if source is None or network.tensors[source.inputs[0]].dtype not in ("Int8", "UInt8"):
            return False
        groups = node.integer("group", 1)
        if node.op != "Conv" or groups == 1 or is_depthwise(network, node):
            return True
        result = network.tensors[node.outputs[0]].channels
        source_channels = network.tensors[node.inputs[0]].channels
        return source_channels // groups % 4 == 0 and result // groups % 4 == 0


class QuantizeBatchedProducts(Rule):
    """TensorRT-RTX: a product of two computed matrices, both behind DQ, is INT8; a Q behind joins."""

    evidence: ClassVar[Evidence] = Evidence.ASSUMED

    def apply(self, network: Network, build: Build) -> None:
        """Let the products of a quantized attention read and write INT8."""
        for node in network.nodes("MatMul"):
            pairs = [dequantizer(network, tensor) for tensor in node.inputs]
            if node.weights or len(pairs) != 2 or None in pairs:
                continue
            for tensor in list(node.inputs):
                read_codes(network, node, tensor)
            write_codes(network, node)


class QuantizePools(Rule):
    """Guide, "Q/DQ fusion": AveragePool between DQ and Q is INT8 ("a quantizable layer")."""

    evidence: ClassVar[Evidence] = Evidence.DOCUMENTED

    def apply(self, network: Network, build: Build) -> None:
        """Let average pools between DQ and Q read and write INT8."""
        for node in network.nodes("AveragePool", "GlobalAveragePool"):
            if dequantizer(network, node.inputs[0]) is not None and write_codes(network, node):
                read_codes(network, node, node.inputs[0])


class QuantizePointwise(Rule):
    """Guide: an elementwise Add takes the DQs before it and the Q behind it.

    NVIDIA/TensorRT#2204 has one that reads Int8 and writes float. That one with a float input
    takes its Q is assumed, as TensorRT-RTX does.
    """

    evidence: ClassVar[Evidence] = Evidence.REPORTED

    def apply(self, network: Network, build: Build) -> None:
        """Let pointwise kernels and normalizations read and write INT8."""
        for node in network.nodes("Pointwise", "LayerNormalization", "Softmax", "Attention"):
            for tensor in dict.fromkeys(node.inputs):
                if node.op == "Pointwise":
                    read_codes(network, node, tensor)
            self._write(network, node)

    def _write(self, network: Network, node: Node) -> None:
        if len(node.outputs) == 1:
            write_codes(network, node)
            return
        for quantize in network.readers(node.outputs[0]):  # of a normalization: the other is a sum
            if quantize.op == QUANTIZE and network.only_reader(node.outputs[0]) is quantize:
                result = quantize.outputs[0]
                network.remove(quantize)
                network.remove(node)
                node.outputs[0] = result
                node.parts.extend(quantize.parts)
                network.add(node)
                network.set_form(result, Form(quantize.codes))
