"""Rules on convolutions and matrix products: whether both sides are quantized, and how.

"Seen" is in the fused kernels that TensorRT-RTX 1.7.1 lists in its build log.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_graphsurgeon as gs

from reptrt.engines.inspection.fusion import depthwise_by_form
from reptrt.engines.inspection.qdq_graph import WeightedLayer
from reptrt.engines.lint.base import LintedModel, Rule, Severity, Site
from reptrt.engines.surgery.qdq import DEQUANTIZE, QUANTIZE, constant_at, producer

WEIGHTED = ("Conv", "Gemm", "MatMul")


def quantized_weight(node: gs.Node) -> gs.Node | None:
    """The DequantizeLinear of the weight of a layer, behind casts, or None."""
    found = producer(node.inputs[1]) if len(node.inputs) > 1 else None
    while found is not None and found.op == "Cast":
        found = producer(found.inputs[0])
    return found if found is not None and found.op == DEQUANTIZE and _holds(found) else None


def _holds(dequantize: gs.Node) -> bool:
    """Whether a DequantizeLinear undoes constants: stored codes, or a float weight's Q."""
    writer = producer(dequantize.inputs[0])
    source = dequantize.inputs[0] if writer is None else writer.inputs[0]
    return isinstance(source, gs.Constant)


def _layers(model: LintedModel) -> Iterator[WeightedLayer]:
    """The layers of a quantized model that TensorRT has INT8 kernels for."""
    if model.is_quantized:
        yield from (layer for layer in model.layers if layer.op in WEIGHTED)


class HalfQuantized(Rule):
    """Seen: a float kernel and more kernels around it than FP16 alone has.

    Matrix products with a quantized weight only have a kernel of their own, and are left out.
    """

    name = "half-quantized"
    severity = Severity.SLOW
    reason = "only one of its inputs is quantized, so it runs in float, slower than without Q/DQ"
    remedy = "quantize both its activation and its weight, or neither"

    def find(self, model: LintedModel) -> Iterator[Site]:
        """Yield the layers with Q/DQ on one side."""
        for layer in _layers(model):
            if layer.activation_quantized and not layer.weight_quantized:
                yield Site(layer.name, layer.op, "not its weight")
            if layer.weight_quantized and not layer.activation_quantized and layer.op == "Conv":
                yield Site(layer.name, layer.op, "not its activation")


class FloatLayer(Rule):
    """By definition: TensorRT 11 has no calibrator, so a layer without Q/DQ is not INT8."""

    name = "float-layer"
    severity = Severity.NOTE
    reason = "it is not quantized and runs in float"
    remedy = "none if it was left out on purpose, as first and last layers often are"

    def find(self, model: LintedModel) -> Iterator[Site]:
        """Yield the layers of a quantized model without any Q/DQ."""
        by_form = depthwise_by_form(model.proto, model.layers)
        for layer in _layers(model):
            is_float = not layer.weight_quantized and not layer.activation_quantized
            if is_float and layer.name not in by_form:
                yield Site(layer.name, layer.op)


class WeightAxis(Rule):
    """Seen: a convolution of axis 1 or a MatMul of axis 0 is multiplied in float."""

    name = "weight-axis"
    severity = Severity.SLOW
    reason = "its weight has one scale per input channel, so it is multiplied in float"
    remedy = "quantize the weight per output channel: axis 0 of Conv, the last axis of MatMul"

    def find(self, model: LintedModel) -> Iterator[Site]:
        """Yield the layers whose weight scales run along another axis."""
        for node in model.nodes_of(*WEIGHTED):
            dequantize = quantized_weight(node)
            scale = None if dequantize is None else constant_at(dequantize, 1)
            if dequantize is None or scale is None or scale.size == 1:
                continue
            is_first = node.op == "Conv" or (node.op == "Gemm" and node.attrs.get("transB", 0))
            rank = len(dequantize.inputs[0].shape or ()) or 2
            legal, axis = 0 if is_first else rank - 1, int(dequantize.attrs.get("axis", 1)) % rank
            if axis != legal and scale.ndim == 1:
                yield model.site(node, f"axis {axis}, not {legal}")


class PerChannelActivation(Rule):
    """Seen: parses, and the convolution runs in float."""

    name = "per-channel-activation"
    severity = Severity.SLOW
    reason = "its activation has one scale per channel, so that what reads it runs in float"
    remedy = "quantize activations per tensor"

    def find(self, model: LintedModel) -> Iterator[Site]:
        """Yield each QuantizeLinear of an activation with several scales."""
        for node in model.nodes_of(QUANTIZE):
            scale = constant_at(node, 1)
            if scale is not None and scale.size > 1 and not isinstance(node.inputs[0], gs.Constant):
                yield model.site(node, f"{scale.size} scales")


class QuantizedConvTranspose(Rule):
    """Seen: float whatever its axis. NVIDIA/TensorRT#1699 (slower), #4366 (invalid output)."""

    name = "conv-transpose"
    severity = Severity.SLOW
    reason = (
        "a quantized ConvTranspose is seldom faster in TensorRT 10 and 11, and never INT8 in RTX"
    )
    remedy = "leave ConvTranspose float"

    def find(self, model: LintedModel) -> Iterator[Site]:
        """Yield each ConvTranspose with Q/DQ on both sides."""
        for layer in model.layers:
            if layer.op == "ConvTranspose" and layer.quantized:
                yield Site(layer.name, layer.op)


class PerTensorWeight(Rule):
    """NVIDIA advises scales per output channel for weights in explicit quantization.

    In the multiplier form factors behind the product stand for the scales per channel.
    """

    name = "per-tensor-weight"
    severity = Severity.ACCURACY
    reason = "its weight has one scale for all output channels, which costs accuracy and no time"
    remedy = "quantize weights per channel (ONNX Runtime: per_channel=True)"

    def find(self, model: LintedModel) -> Iterator[Site]:
        """Yield the layers of several output channels with one weight scale."""
        for node in model.nodes_of(*WEIGHTED) if model.form != "multiplier" else ():
            dequantize = quantized_weight(node)
            scale = None if dequantize is None else constant_at(dequantize, 1)
            shape = () if dequantize is None else dequantize.inputs[0].shape or ()
            if scale is not None and scale.size == 1 and max(shape[:1], default=1) > 1:
                yield model.site(node)


LAYER_RULES: tuple[Rule, ...] = (
    HalfQuantized(),
    WeightAxis(),
    PerChannelActivation(),
    QuantizedConvTranspose(),
    PerTensorWeight(),
    FloatLayer(),
)
