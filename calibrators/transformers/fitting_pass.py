"""RepQ-ViT's pass, with weights and ranges in closed form: what `gptq` and `repquant` run.

Weights and biases are fitted to tokens that are drawn by what the outputs of the network depend on
(`reptrt.calibrators.importance`): in the last block of a ViT, for one, only the class token matters. Our own; docs/results.md
has what it gains, and that ranges gain nothing by it.
"""

from __future__ import annotations

import torch
from torch import fx

from reptrt.calibrators.base import Batches
from reptrt.calibrators.importance import NO_IMPORTANCE, find_importance
from reptrt.calibrators.progress import Progress, no_progress
from reptrt.calibrators.quantized.quantized_model import QuantizedModel
from reptrt.calibrators.quantized.quantizers import IntegerGrid, TensorQuantizer
from reptrt.calibrators.quantized.run_nodes import float_overrides
from reptrt.calibrators.second_order.fit_layer import fit_read_layer
from reptrt.calibrators.second_order.node_inputs import NodeInputs
from reptrt.calibrators.transformers.output_range import set_range_by_output
from reptrt.calibrators.transformers.repq_vit import ReparameterizingPass

aten = torch.ops.aten


class FittingPass(ReparameterizingPass):
    """Sets every quantizer, weight and bias of `model`; its weights become latents.

    Args:
        model: float.
        folded: a copy of `model`, into which channels are folded alike; it stays float.
        seed: of the rows that are drawn.
    """

    def __init__(self, model: QuantizedModel, folded: QuantizedModel, seed: int) -> None:
        super().__init__(model, [folded])
        self._seed, self._fitted = seed, set[str]()
        self._importance = NO_IMPORTANCE

    def run(self, batches: Batches, progress: Progress = no_progress) -> dict[str, str]:
        """See `ReparameterizingPass.run`."""
        model = self.model
        layers = [n for n in model.graph_module.graph.nodes if n.name in model.placement.layers]
        floats = float_overrides(model)
        self._importance = find_importance(model, layers, batches, floats, self._seed)
        return super().run(batches, progress)

    def fit_tensor(self, call: fx.Node, quantizer: TensorQuantizer, x: torch.Tensor) -> None:
        """By the outputs of the linears that read it, where only linears do."""
        layers = self.model.placement.layers
        if all(user.target is aten.linear.default and user.name in layers for user in call.users):
            weights = [self.model.weight_of(layers[user.name]) for user in call.users]
            set_range_by_output(quantizer, x, weights)
        else:
            super().fit_tensor(call, quantizer, x)

    def fit_weight(self, node_inputs: NodeInputs, node: fx.Node) -> None:
        """Clip, round and correct; a weight that several layers share is the first one's."""
        layer = self.model.placement.layers[node.name]
        if layer in self._fitted:
            return
        self._fitted.add(layer)
        quantizer = self.model.weight_quantizers[layer]
        if quantizer.grid.num_bits < 8:
            quantizer.grid = IntegerGrid.unsigned(quantizer.grid.num_bits)
        fit_read_layer(self.model, node, node_inputs, self._seed, self._importance)
