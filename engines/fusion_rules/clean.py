"""Nodes that no engine has a layer for: copies, casts beside Q/DQ, and what folds into weights."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from reptrt.engines.fusion_rules.network import DEQUANTIZE, FLOATS, QUANTIZE, Form, Network, Node
from reptrt.engines.fusion_rules.rule import Build, Evidence, Rule


class DropNoOps(Rule):
    """Guide, "Supported fusions": layers that change nothing are erased. A100: no trace of them."""

    evidence: ClassVar[Evidence] = Evidence.SEEN

    def apply(self, network: Network, build: Build) -> None:
        """Remove Identity, Dropout, Cast to the type there is, and Pad and Expand to the size."""
        for node in network.nodes("Identity", "Dropout", "Cast", "Pad", "Expand"):
            source, result = (network.tensors[name] for name in (node.inputs[0], node.outputs[0]))
            is_same = (source.dtype, source.dims) == (result.dtype, result.dims)
            is_known = bool(source.dims) or node.op == "Cast"
            changes = node.op in ("Cast", "Pad", "Expand") and not (is_same and is_known)
            if not changes and result.name not in network.outputs:
                network.bypass(node)


class DropCastsAroundQuantizers(Rule):
    """TensorRT-RTX 1.7.1: a scale in FP32 with Cast on FP16 data gives the same INT8 layers."""

    evidence: ClassVar[Evidence] = Evidence.ASSUMED

    def apply(self, network: Network, build: Build) -> None:
        """Let Q read what a Cast reads, and DQ write what a Cast behind it writes."""
        for node in reversed(network.in_order()):
            if node.op == "Cast" and network.tensors[node.inputs[0]].dtype in FLOATS:
                self._drop_before_quantize(network, node)
        for node in network.nodes(DEQUANTIZE):
            self._drop_behind_dequantize(network, node)

    def _drop_before_quantize(self, network: Network, cast: Node) -> None:
        for reader in network.readers(cast.outputs[0]):
            if reader.op == QUANTIZE:
                network.rewire(reader, cast.outputs[0], cast.inputs[0])
        if not network.readers(cast.outputs[0]) and cast.outputs[0] not in network.outputs:
            network.remove(cast)

    def _drop_behind_dequantize(self, network: Network, dequantize: Node) -> None:
        result = dequantize.outputs[0]
        for cast in network.readers(result):
            if cast.op == "Cast" and cast.outputs[0] not in network.outputs:
                network.set_form(result, network.tensors[cast.outputs[0]].form)
                network.bypass(cast)


class ChooseHalf(Rule):
    """A100, FP16 and INT8: with FP16 allowed, all float tensors inside are Half."""

    evidence: ClassVar[Evidence] = Evidence.SEEN

    def apply(self, network: Network, build: Build) -> None:
        """Turn Float into Half where the builder may choose."""
        if not build.is_weakly_typed:
            return
        for name, tensor in network.tensors.items():
            if tensor.dtype == "Float" and name not in network.inputs:
                network.tensors[name] = replace(tensor, form=Form("Half"))


class FoldBatchNorm(Rule):
    """Guide: "Convolution and Scale". A100: ResNet-18's 20 BatchNorms are in no list."""

    evidence: ClassVar[Evidence] = Evidence.SEEN

    def apply(self, network: Network, build: Build) -> None:
        """Fold BatchNormalization into the convolution that it alone reads."""
        for norm in network.nodes("BatchNormalization"):
            layer = network.writer(norm.inputs[0])
            if layer is None or layer.op not in ("Conv", "ConvTranspose", "Gemm"):
                continue
            if network.only_reader(norm.inputs[0]) is norm:
                norm.weights = []
                network.absorb_reader(layer, norm)


class FoldScale(Rule):
    """Guide: "Convolution and Scale". hmorimitsu/ptlflow#65: "fc2/Conv + Mul + Add".

    In a quantized convolution it is not confirmed, nor done.
    """

    evidence: ClassVar[Evidence] = Evidence.REPORTED

    def apply(self, network: Network, build: Build) -> None:
        """Fold Mul and Add of a constant per channel into float convolutions and products."""
        for layer in network.nodes("Conv", "ConvTranspose", "Gemm", "MatMul"):
            if len(layer.inputs) != 1 or not layer.weights:
                continue
            quantized = any(network.tensors[name].quantized for name in layer.weights)
            reader = network.only_reader(layer.outputs[0])
            while reader is not None and reader.op in ("Mul", "Add", "Sub"):
                is_bias = reader.op == "Add" and layer.op in ("Gemm", "MatMul")
                if not self._is_per_channel(network, reader) or (quantized and not is_bias):
                    break
                if not is_bias:
                    reader.weights = []
                network.absorb_reader(layer, reader)
                reader = network.only_reader(layer.outputs[0])

    def _is_per_channel(self, network: Network, node: Node) -> bool:
        if len(node.inputs) != 1 or len(node.weights) != 1:
            return False
        constant = network.tensors[node.weights[0]].dims
        result = network.tensors[node.outputs[0]].dims
        axis = 1 if len(result) == 4 else len(result) - 1
        full = (1,) * (len(result) - len(constant)) + constant
        return all(size == 1 or index == axis for index, size in enumerate(full))


class FoldPad(Rule):
    """Guide: "Padding and Convolution/Deconvolution"; NVIDIA/TensorRT#2592 saw it done."""

    evidence: ClassVar[Evidence] = Evidence.REPORTED

    def apply(self, network: Network, build: Build) -> None:
        """Fold a Pad with zeros into the convolutions that alone read it."""
        for pad in network.nodes("Pad"):
            readers = network.readers(pad.outputs[0])
            folds = readers and all(node.op in ("Conv", "ConvTranspose") for node in readers)
            if folds and pad.text("mode", "constant") == "constant" and len(pad.inputs) == 1:
                for reader in readers:
                    reader.parts = [*pad.parts, *reader.parts]
                network.bypass(pad)
