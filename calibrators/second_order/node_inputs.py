"""The calibration images on their way through a network, node by node.

What a method without training needs: the values that reach a quantizer or a layer, all quantizers
before it being active already. All images are at one node at a time, so memory grows with their
number; values go as soon as nothing later reads them, or what their quantizer makes of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import fx

from reptrt.calibrators.base import Batches
from reptrt.calibrators.feed import Batch, tensors_of
from reptrt.calibrators.quantized.quantized_model import QuantizedModel, is_activation_call
from reptrt.calibrators.quantized.run_nodes import activation_nodes, run_nodes


class NodeInputs:
    """Iterating yields every node that depends on the images, right before it is computed.

    Whoever iterates may set the node's quantizer or weights first; the model as it then is computes
    the node's value.

    Args:
        model: its weights and quantizers are read node by node.
        batches: calibration images.

    Attributes:
        nodes: what is yielded, in graph order.
    """

    def __init__(self, model: QuantizedModel, batches: Batches | Sequence[Batch]) -> None:
        self._graph_module = model.graph_module
        activations = activation_nodes(model.graph_module.graph)
        self.nodes = [node for node in activations if node.op != "placeholder"]
        self._last_reader = {source: node for node in self.nodes for source in node.all_input_nodes}
        order = {node: index for index, node in enumerate(self.nodes)}
        for call in filter(is_activation_call, self.nodes):  # its readers may ask for both
            (source,) = call.all_input_nodes
            readers = (self._last_reader[source], self._last_reader.get(call, call))
            self._last_reader[source] = max(readers, key=order.__getitem__)
        read = [node for node in activations if node.op == "placeholder"]
        feeds = list(batches)
        tensors = zip(*map(tensors_of, feeds), strict=True)
        self._values: dict[fx.Node, list[torch.Tensor]] = {
            node: list(values) for node, values in zip(read, tensors, strict=True)
        }
        self._sizes = [len(feed) for feed in feeds]

    def __iter__(self) -> Iterator[fx.Node]:
        for node in self.nodes:
            yield node
            with torch.no_grad():
                self._values[node] = [self._compute(node, i) for i in range(len(self._sizes))]
            for source in [s for s in self._values if self._last_reader.get(s) is node]:
                self._values.pop(source)

    def read(self, node: fx.Node) -> torch.Tensor:
        """Value of a node that was computed and is still needed, of all images."""
        return torch.cat(self._values[node])

    def batches(self, node: fx.Node) -> Sequence[torch.Tensor]:
        """The same, batch by batch."""
        return self._values[node]

    def change(self, node: fx.Node, values: Sequence[torch.Tensor]) -> None:
        """Put `values` in the place of what `node` computed, batch by batch."""
        self._values[node] = list(values)

    def _compute(self, node: fx.Node, index: int) -> torch.Tensor:
        known = self._values
        values = {n: known[n][index] for n in node.all_input_nodes if n in known}
        run_nodes(self._graph_module, [node], values, {}, self._sizes[index])
        return values[node]
