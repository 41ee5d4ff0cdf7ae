"""The weight and the bias of a layer in closed form: clip, round by GPTQ, correct the bias.

In that order, on the layer's quantized inputs. What is aimed at is the layer's own float output of what
it now reads, not the float network's: a layer that makes up for the errors of those before it was
measured to generalise badly (docs/results.md).
"""

from __future__ import annotations

import torch
from torch import fx

from reptrt.calibrators.importance import NO_IMPORTANCE, Importance
from reptrt.calibrators.quantized.quantized_model import QuantizedModel, is_activation_call
from reptrt.calibrators.second_order.gptq import gptq_round
from reptrt.calibrators.second_order.input_moments import InputMoments, input_moments
from reptrt.calibrators.second_order.node_inputs import NodeInputs
from reptrt.calibrators.second_order.weight_clip import clip_by_output
from reptrt.models.graph import get_tensor


@torch.no_grad()
def fit_layer(model: QuantizedModel, node: fx.Node, moments: InputMoments) -> None:
    """Calibrate the weight of the layer `node`, and give it weight and bias for that, in place.

    The weight of `model` becomes the latents: its quantizer makes the rounded weight of them.

    Args:
        model: the layer's weight and bias are float as yet.
        node: of a quantized layer.
        moments: of what it reads.
    """
    layer = model.placement.layers[node.name]
    quantizer, weight = model.weight_quantizers[layer], model.weight_of(layer)
    clip_by_output(quantizer, weight, moments.covariance)
    rounded = gptq_round(weight, quantizer, moments.covariance)
    wanted = _mean_output(weight, moments.float_mean)
    weight.copy_(rounded.latents)
    bias = node.args[2] if len(node.args) > 2 else None
    if isinstance(bias, fx.Node) and bias.op == "get_attr" and len(bias.users) == 1:
        found = _mean_output(rounded.values, moments.mean)
        get_tensor(model.graph_module, bias).add_(wanted - found)


def _mean_output(weight: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """Mean [out] of what the layer makes of rows with `mean` [groups, in]; without the bias."""
    rows = weight.double().reshape(len(mean), -1, mean.shape[1])
    return (rows @ mean[:, :, None]).flatten()


def fit_read_layer(
    model: QuantizedModel,
    node: fx.Node,
    node_inputs: NodeInputs,
    seed: int,
    importance: Importance = NO_IMPORTANCE,
) -> None:
    """As `fit_layer`, of a layer whose inputs are in `node_inputs`.

    Args:
        model: see `fit_layer`.
        node: see `fit_layer`.
        node_inputs: stands before it.
        seed: of the positions that are drawn.
        importance: positions are drawn by that of the layer's output; where it has none, all alike.
    """
    source = node.args[0]
    assert isinstance(source, fx.Node)
    before = source.args[0] if is_activation_call(source) else source
    assert isinstance(before, fx.Node)
    generator = torch.Generator().manual_seed(seed)
    weight = model.weight_of(model.placement.layers[node.name])
    quantized, unquantized = node_inputs.batches(source), node_inputs.batches(before)
    known = importance.get(node)
    fit_layer(model, node, input_moments(node, weight, quantized, unquantized, generator, known))
