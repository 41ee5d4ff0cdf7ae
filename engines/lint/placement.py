"""Rules on where Q/DQ pairs stand between layers.

"Seen" is in the fused kernels that TensorRT-RTX 1.7.1 lists in its build log.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_graphsurgeon as gs

from reptrt.engines.commuting import commutes
from reptrt.engines.lint.base import LintedModel, Rule, Severity, Site
from reptrt.engines.lint.codes import code_type
from reptrt.engines.lint.layers import WEIGHTED, quantized_weight
from reptrt.engines.surgery.qdq import DEQUANTIZE, QUANTIZE, constant_at, producer
from reptrt.engines.surgery.repair.add_bias_behind_heads import (
    AddBiasBehindHeads,
    heads_behind_bias,
)
from reptrt.engines.surgery.repair.drop_output_qdq import DropOutputQdq
from reptrt.engines.surgery.repair.fuse_pad_into_conv import FusePadIntoConv, spatial_pads
from reptrt.engines.surgery.repair.tie_concat_scales import TieConcatScales
from reptrt.engines.surgery.walks import reaching

_PAIR = frozenset({QUANTIZE, DEQUANTIZE})
_POINTWISE = frozenset({"Cast", "Clip", "HardSwish", "LeakyRelu", "Mul", "Relu", "Sigmoid"})
_AROUND_ATTENTION = frozenset(
    (
        *("Add", "Cast", "Div", "Gather", "Mul", "Reshape", "Slice", "Split", "Squeeze", "Sub"),
        "Transpose",
    )
)


class UntiedConcat(Rule):
    """Seen: the next convolution runs in float and dequantizes its weight at run time."""

    name = "untied-concat"
    severity = Severity.SLOW
    reason = (
        "it joins different scales without Q/DQ behind it, so that the next layer runs in float"
    )
    remedy = "give its inputs one scale, or put Q/DQ behind it"
    repaired_by = (TieConcatScales,)

    def find(self, model: LintedModel) -> Iterator[Site]:
        """Yield each Concat of different scales that a layer reads."""
        leading = reaching(model.nodes, lambda node: node.op in WEIGHTED, _moves)
        for concat in model.nodes_of("Concat"):
            if id(concat.outputs[0]) not in leading:
                continue
            scales = [_scale_behind(part) for part in concat.inputs]
            if None not in scales and len(set(scales)) > 1:
                yield model.site(concat, f"{len(set(scales))} scales")


def _scale_behind(tensor: gs.Tensor) -> float | None:
    """The per-tensor scale of the DequantizeLinear whose values `tensor` holds, or None."""
    node = producer(tensor)
    while node is not None and _moves(node):
        node = producer(node.inputs[0])
    if node is None or node.op != DEQUANTIZE:
        return None
    scale = constant_at(node, 1)
    return float(scale.item()) if scale is not None and scale.size == 1 else None


def _moves(node: gs.Node) -> bool:
    return commutes(node) or node.op == "Cast"


class PadBeforePair(Rule):
    """NVIDIA/TensorRT#2592: 28 ms with Pad, Q, DQ, Conv and 21 ms with the convolution padding."""

    name = "pad-before-pair"
    severity = Severity.SLOW
    reason = "Q/DQ between Pad and convolution makes the Pad a kernel of its own"
    remedy = "let the convolution pad, with 0: for that, quantize symmetrically"
    repaired_by = (FusePadIntoConv,)

    def find(self, model: LintedModel) -> Iterator[Site]:
        """Yield each Pad behind which Q/DQ and a convolution follow."""
        to_conv = reaching(model.nodes, lambda node: node.op == "Conv", _keeps_pads)
        to_pair = reaching(
            model.nodes,
            lambda node: node.op in _PAIR and id(node.outputs[0]) in to_conv,
            _keeps_pads,
        )
        for pad in model.nodes_of("Pad"):
            if id(pad.outputs[0]) in to_pair:
                is_zero = spatial_pads(pad) is not None
                yield model.site(pad, "" if is_zero else "with another value than 0", is_zero)


def _keeps_pads(node: gs.Node) -> bool:
    return node.op in _PAIR or node.op in {"Cast", "Clip", "Relu"}


class AttentionPair(Rule):
    """Seen: two products and a softmax instead of one kernel, once a product's sides are both INT8.

    With Q/DQ on one side only, the kernel stays one; and so it does with FP8 on all sides of both products.
    """

    name = "attention-pair"
    severity = Severity.SLOW
    reason = (
        "a product of attention is quantized: TensorRT no longer fuses attention into one kernel"
    )
    remedy = (
        "quantize the linears around attention only, not its products, or all their operands in FP8"
    )

    def find(self, model: LintedModel) -> Iterator[Site]:
        """Yield the products of attention that read two DequantizeLinear nodes."""
        products = {model.site(node).node: node for node in model.nodes_of("MatMul")}
        for attention in model.attentions:
            found = {name: products[name] for name in sorted(attention) if name in products}
            pairs = {name: [*map(_pair_behind, node.inputs)] for name, node in found.items()}
            if all(_is_fp8(pair) for sides in pairs.values() for pair in sides):
                continue
            for name, sides in pairs.items():
                if all(pair is not None for pair in sides):
                    yield model.site(found[name])


def _pair_behind(tensor: gs.Tensor) -> gs.Node | None:
    """The DequantizeLinear whose values `tensor` holds, moved or scaled."""
    node = producer(tensor)
    while node is not None and node.op in _AROUND_ATTENTION:
        node = next(filter(None, map(producer, node.inputs)), None)
    return node if node is not None and node.op == DEQUANTIZE else None


def _is_fp8(pair: gs.Node | None) -> bool:
    return pair is not None and code_type(pair) == "float8_e4m3fn"


class FloatAttention(Rule):
    """Seen: one kernel for an attention in FP16, several in FP32."""

    name = "float32-attention"
    severity = Severity.SLOW
    reason = "TensorRT fuses attention into one kernel in FP16, not in FP32"
    remedy = "export what is not INT8 in FP16"

    def find(self, model: LintedModel) -> Iterator[Site]:
        """Yield the softmax of each attention in FP32."""
        inside = frozenset().union(*model.attentions)
        for node in model.nodes_of("Softmax"):
            site = model.site(node)
            if site.node in inside and node.inputs[0].dtype == np.float32:
                yield site


class BiasBeforeHeads(Rule):
    """Seen: on Swin, 12 of 53 layers in float, and none behind the repair."""

    name = "bias-before-heads"
    severity = Severity.SLOW
    reason = (
        "TensorRT-RTX takes query, key and value apart before the bias, and multiplies in float"
    )
    remedy = "add the bias behind the Reshape that cuts the channels into heads"
    repaired_by = (AddBiasBehindHeads,)

    def find(self, model: LintedModel) -> Iterator[Site]:
        """Yield each Add of a bias to a quantized product that is then cut into heads."""
        for add in model.nodes_of("Add"):
            if heads_behind_bias(model.graph, add) is not None:
                yield model.site(add)


class FloatSkip(Rule):
    """NVIDIA/TensorRT#1992: without Q/DQ on the skip input, Add and its convolution write float."""

    name = "float-skip"
    severity = Severity.SLOW
    reason = "no input of this Add is quantized, so that the convolution before it writes float"
    remedy = "put Q/DQ on the skip connection, not on the convolution's output"

    def find(self, model: LintedModel) -> Iterator[Site]:
        """Yield each Add of a quantized convolution and a float tensor that is quantized after."""
        quantized_next = reaching(
            model.nodes, lambda node: node.op == QUANTIZE, lambda node: node.op in _POINTWISE
        )
        for add in model.nodes_of("Add"):
            writers = [producer(tensor) for tensor in add.inputs]
            has_conv = any(node is not None and _is_int8_conv(node) for node in writers)
            is_skip = all(node is not None for node in writers) and all(
                _scale_behind(_before_scaling(tensor)) is None for tensor in add.inputs
            )
            if has_conv and is_skip and id(add.outputs[0]) in quantized_next:
                yield model.site(add)


def _before_scaling(tensor: gs.Tensor) -> gs.Tensor:
    """x, where `tensor` is x times a constant, as in `conv(x) + alpha * x`; else itself."""
    node = producer(tensor)
    if node is None or node.op != "Mul":
        return tensor
    factors = [factor for factor in node.inputs if not isinstance(factor, gs.Constant)]
    return factors[0] if len(factors) == 1 else tensor


class BranchPair(Rule):
    """NVIDIA advises Q/DQ on the skip input only. Seen: one more requantization before Add."""

    name = "branch-pair"
    severity = Severity.SLOW
    reason = "Q/DQ between a convolution and Add keeps TensorRT from fusing the two"
    remedy = "put Q/DQ on the skip connection only"

    def find(self, model: LintedModel) -> Iterator[Site]:
        """Yield each Add whose inputs are both quantized, one straight behind a convolution."""
        for add in model.nodes_of("Add"):
            if all(_scale_behind(tensor) is not None for tensor in add.inputs) and any(
                map(_is_pair_behind_conv, add.inputs)
            ):
                yield model.site(add)


def _is_pair_behind_conv(tensor: gs.Tensor) -> bool:
    dequantize = producer(tensor)
    if dequantize is None or dequantize.op != DEQUANTIZE or len(tensor.outputs) != 1:
        return False
    quantize = producer(dequantize.inputs[0])
    conv = None if quantize is None else producer(quantize.inputs[0])
    return conv is not None and _is_int8_conv(conv)


def _is_int8_conv(node: gs.Node) -> bool:
    return (
        node.op == "Conv"
        and quantized_weight(node) is not None
        and _scale_behind(node.inputs[0]) is not None
    )


class OutputPair(Rule):
    """A graph output is float: quantizing it once more can only lose."""

    name = "output-pair"
    severity = Severity.ACCURACY
    reason = "the output is rounded to 8 bits and back for nothing"
    remedy = "leave outputs without Q/DQ"
    repaired_by = (DropOutputQdq,)

    def find(self, model: LintedModel) -> Iterator[Site]:
        """Yield each DequantizeLinear that makes an output."""
        for output in model.graph.outputs:
            node = producer(output)
            if node is not None and node.op == DEQUANTIZE and producer(node.inputs[0]) is not None:
                yield model.site(node, f"output {output.name}")


PLACEMENT_RULES: tuple[Rule, ...] = (
    UntiedConcat(),
    PadBeforePair(),
    AttentionPair(),
    FloatAttention(),
    BiasBeforeHeads(),
    FloatSkip(),
    BranchPair(),
    OutputPair(),
)
