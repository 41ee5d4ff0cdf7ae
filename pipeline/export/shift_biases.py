"""Move the codes 0..255 of a quantizer onto INT8: through the biases of the layers around it, or a subtraction.

Where a quantizer has an offset (`reptrt.calibrators.quantized.half_range` says which may), its tensor x travels as
x - 128 s: the layer before takes -128 s into its bias, the ReLU goes, since INT8 saturates at -128,
which now stands for 0, and every layer behind takes 128 s sum(W) per output channel into its own. No
operator is added and one is removed. A tensor with another zero point z, as behind a GELU, travels as
x - (128 - z) s, by a subtraction that fuses with the operator that makes x.

The second term is a whole number of the steps of the reader's accumulator (input scale x weight
scale). The first is not, so `reptrt.calibrators.quantized.biases` rounds the bias less 128 s. A layer that had no bias
is not rounded there: a runtime that holds biases in such steps shifts it by at most half of one, some
thousandths of a step of its output.
"""

from __future__ import annotations

import torch
from torch import fx

from reptrt.calibrators.quantized.half_range import (
    has_shiftable_readers,
    producer_offset,
    real_offset,
)
from reptrt.models.parameters import fresh_path, get_tensor

aten = torch.ops.aten


def shift_biases(module: fx.GraphModule) -> None:
    """Rewrite every neighbour of a quantizer with an offset, in place; the quantizers stay.

    Args:
        module: FP32 graph of a `QuantizedModel`. Biases are replaced, never changed: several layers
            may share one.
    """
    for call in list(module.graph.nodes):
        offset = real_offset(module, call)
        if offset == 0:
            continue
        assert has_shiftable_readers(call), f"{call.target}: its readers cannot take its offset"
        for reader in list(call.users):
            _add_to_bias(module, reader, offset * _weight(module, reader).flatten(1).sum(1))
        if producer_offset(module, call):
            _drop_relu(module, call.args[0], offset)
        else:
            with module.graph.inserting_before(call):
                call.args = (module.graph.call_function(aten.sub.Tensor, (call.args[0], offset)),)


def _drop_relu(module: fx.GraphModule, relu: fx.Node, offset: float) -> None:
    """Let the bias in front of `relu` take the offset, and saturation its place."""
    producer = relu.args[0]
    assert isinstance(producer, fx.Node)
    _add_to_bias(module, producer, -offset)
    relu.replace_all_uses_with(producer)
    module.graph.erase_node(relu)


def _weight(module: fx.GraphModule, layer: fx.Node) -> torch.Tensor:
    """Weight [out, in, ...] that `layer` multiplies by, dequantized, as FP64."""
    weight = layer.args[1]
    assert isinstance(weight, fx.Node)
    if weight.op != "call_module":
        return get_tensor(module, weight).double()
    quantizer = module.get_submodule(str(weight.target))
    assert isinstance(weight.args[0], fx.Node)
    dequantized: torch.Tensor = quantizer(get_tensor(module, weight.args[0]))
    return dequantized.double()


def _add_to_bias(module: fx.GraphModule, layer: fx.Node, shift: torch.Tensor | float) -> None:
    """Give `layer` a bias of its own, [out], that is larger by `shift`, a number or [out]."""
    old = layer.args[2] if len(layer.args) > 2 else None
    if isinstance(old, fx.Node):
        bias = get_tensor(module, old)
    else:
        bias = torch.zeros_like(_weight(module, layer).flatten(1)[:, 0], dtype=torch.float32)
    name = fresh_path(module, f"{layer.name}_shifted_bias")
    module.register_buffer(name, (bias.double() + shift).to(bias.dtype))
    with module.graph.inserting_before(layer):
        layer.args = (*layer.args[:2], module.graph.get_attr(name), *layer.args[3:])
