"""Points that may use all 256 codes of INT8 although their values are never negative.

TensorRT wants zero point 0, so a tensor behind a ReLU uses the codes 0..127 only: 7 bits. Quantizing
x - 128 s instead of x uses them all, and costs nothing where two neighbours absorb the shift: the
layer that makes x takes -128 s into its bias, and INT8 saturation at -128 does the ReLU's work; every
layer that reads x takes +128 s sum(W) into its own. The latter holds for linears and unpadded
convolutions only: the zeros of a padding would have to be -128 s. `reptrt.pipeline.export.shift_biases` writes it.

Our own; the papers simulate 0..255 and leave its deployment open.
"""

from __future__ import annotations

import torch
from torch import fx

from reptrt.calibrators.quantized.placement import WEIGHTED
from reptrt.calibrators.quantized.quantized_model import QuantizedModel
from reptrt.calibrators.quantized.quantizers import TensorQuantizer

aten = torch.ops.aten

_BIAS, _PADDING = 2, 4  # positions among the arguments of a convolution


def shiftable_points(model: QuantizedModel) -> frozenset[str]:
    """Names of the points of `model` that may take `IntegerGrid.unsigned(8)`.

    Every tensor of such a point is the ReLU of a convolution or linear that nothing else reads, and
    all its readers are linears or convolutions without padding.
    """
    calls: dict[TensorQuantizer, list[fx.Node]] = {}
    for node in model.graph_module.graph.nodes:
        if node.op == "call_module":
            quantizer = model.graph_module.get_submodule(str(node.target))
            assert isinstance(quantizer, TensorQuantizer)
            calls.setdefault(quantizer, []).append(node)
    return frozenset(
        name
        for name, quantizer in model.activation_quantizers.items()
        if all(is_shiftable(call) for call in calls[quantizer])
    )


def real_offset(module: fx.GraphModule, node: fx.Node) -> float:
    """Offset, in real units, by which the tensor quantized by `node` is stored lower; 0 without one."""
    if node.op != "call_module":
        return 0.0
    quantizer = _quantizer(module, node)
    is_offset = quantizer.axis is None and quantizer.offset
    return quantizer.offset * float(quantizer.scale) if is_offset else 0.0


def producer_offset(module: fx.GraphModule, call: fx.Node) -> float:
    """The part of `real_offset` that the bias of the layer in front of the ReLU absorbs: all of it or 0.

    All of it where INT8 saturation then does the ReLU's work.
    """
    is_unsigned = call.op == "call_module" and not _quantizer(module, call).zero_point.any()
    return real_offset(module, call) if is_unsigned and is_shiftable(call) else 0.0


def has_shiftable_readers(call: fx.Node) -> bool:
    """Whether the biases of all that read the activation quantizer `call` can take its offset."""
    return all(_has_constants(reader) and not _is_padded(reader) for reader in call.users)


def is_shiftable(call: fx.Node) -> bool:
    """Whether the neighbours of the activation quantizer `call` can absorb a shift."""
    relu = call.args[0]
    if not isinstance(relu, fx.Node) or relu.target is not aten.relu.default:
        return False
    producer = relu.args[0]
    return (
        isinstance(producer, fx.Node)
        and len(relu.users) == len(producer.users) == 1
        and _has_constants(producer)
        and has_shiftable_readers(call)
    )


def _quantizer(module: fx.GraphModule, call: fx.Node) -> TensorQuantizer:
    quantizer = module.get_submodule(str(call.target))
    assert isinstance(quantizer, TensorQuantizer)
    return quantizer


def _has_constants(node: fx.Node) -> bool:
    """Whether `node` is a layer with a constant weight and a constant bias, or room for one."""
    if node.target not in WEIGHTED:
        return False
    bias = node.args[_BIAS] if len(node.args) > _BIAS else None
    return _is_constant(node.args[1]) and (bias is None or _is_constant(bias))


def _is_constant(argument: object) -> bool:
    """Whether it is a tensor of the state dict, or its quantizer."""
    return isinstance(argument, fx.Node) and argument.op in ("get_attr", "call_module")


def _is_padded(layer: fx.Node) -> bool:
    if layer.target is aten.linear.default or len(layer.args) <= _PADDING:
        return False
    padding = layer.args[_PADDING]
    return any(padding) if isinstance(padding, (list, tuple)) else bool(padding)
