"""Biases on the grid of the accumulator, as integer kernels hold them.

An INT8 kernel adds products of codes in INT32; one step of that sum is worth input scale x weight
scale. ONNX Runtime rounds the bias to such steps when it fuses a layer. Rounding it here makes that
exact, so that PyTorch, ONNX Runtime and an integer kernel add the same number. Where the output's codes
are stored lower by 128 (`reptrt.calibrators.quantized.half_range`), it is the bias minus that offset.
"""

from __future__ import annotations

import torch
from torch import fx

from reptrt.calibrators.quantized.half_range import producer_offset
from reptrt.calibrators.quantized.moving import SELECTING
from reptrt.calibrators.quantized.quantized_model import QuantizedModel
from reptrt.calibrators.quantized.quantizers import TensorQuantizer


@torch.no_grad()
def round_biases(model: QuantizedModel) -> None:
    """Round the bias [out] of every quantized layer to input scale x weight scale, in place.

    The scales must be final. A bias that several layers read is left alone.
    """
    layers = model.placement.layers
    for node in model.graph_module.graph.nodes:
        bias = node.args[2] if node.name in layers and len(node.args) > 2 else None
        if isinstance(bias, fx.Node) and bias.op == "get_attr" and len(bias.users) == 1:
            step = _input_scale(model, node) * model.weight_quantizers[layers[node.name]].scale
            parameter = model.graph_module.get_parameter(str(bias.target))
            offset = _output_offset(model, node)
            added = torch.round((parameter.double() - offset) / step)
            parameter.copy_(added * step + offset)


def _output_offset(model: QuantizedModel, layer: fx.Node) -> float:
    """What export takes off the bias of `layer`, for the quantizer behind its ReLU."""
    calls = [call for relu in layer.users for call in relu.users]
    return max((producer_offset(model.graph_module, call) for call in calls), default=0.0)


def _input_scale(model: QuantizedModel, layer: fx.Node) -> torch.Tensor:
    """Scale of what `layer` reads; all that flows through a concat or max-pool shares one."""
    source = layer.args[0]
    while isinstance(source, fx.Node) and source.op != "call_module":
        assert source.target in SELECTING, source
        inputs = source.args[0]
        source = inputs[0] if isinstance(inputs, (list, tuple)) else inputs
    assert isinstance(source, fx.Node)
    quantizer = model.graph_module.get_submodule(str(source.target))
    assert isinstance(quantizer, TensorQuantizer)
    return quantizer.scale
