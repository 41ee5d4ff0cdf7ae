"""The calibration images on their way through a network, block by block: in float and quantized."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import fx

from reptrt.calibrators.base import Batches
from reptrt.calibrators.quantized.quantized_model import QuantizedModel
from reptrt.calibrators.quantized.run_nodes import Overrides, run_nodes
from reptrt.calibrators.reconstruction.activation_cache import ActivationCache, SampleStore
from reptrt.calibrators.reconstruction.blocks import Block, compared_outputs

CHUNK = 32
"""Images that go through a block at once, where the graph's batch is dynamic."""

aten = torch.ops.aten

Indices = torch.Tensor | slice
Stores = dict[fx.Node, SampleStore]
Statistics = dict[str, tuple[torch.Tensor, torch.Tensor]]
Values = dict[fx.Node, torch.Tensor]


class BlockInputs:
    """What crosses the border in front of the next block, for every image.

    Args:
        model: its quantizers and weights are read when a block is passed.
        blocks: all of `model`, in order.
        batches: calibration images.
        cache: where activations are kept.
        float_network: overrides that turn the model into the float network.

    Attributes:
        blocks: as given.
        num_samples: calibration images.
        device: where the network is.
        batch_size: images that the graph takes at once; None for any number.
        float_network: as given.
    """

    def __init__(
        self,
        model: QuantizedModel,
        blocks: Sequence[Block],
        batches: Batches,
        cache: ActivationCache,
        float_network: Overrides,
    ) -> None:
        self.blocks, self.float_network = blocks, float_network
        self._graph_module, self._cache = model.graph_module, cache
        self._stage: tuple[int, Stores] = (-1, {})
        placeholder = next(n for n in model.graph_module.graph.nodes if n.op == "placeholder")
        size = placeholder.meta["val"].shape[0]
        self.batch_size = size if isinstance(size, int) else None
        self.num_samples = 0
        for batch in batches:
            if self.num_samples == 0:
                images = cache.allocate(len(batches) * len(batch), batch.shape[1:])
                self.device = batch.device
            images.write(self.num_samples, batch)
            self.num_samples += len(batch)
        self._images = images
        self._float: Stores = {placeholder: images}
        self._quantized: Stores = {placeholder: images}

    def pass_in_float(self, block: Block) -> None:
        """Compute the float outputs of `block`: the targets of its reconstruction."""
        self._float |= self._run(block, block.outputs, self._float, self.float_network)

    def pass_quantized(self, block: Block) -> None:
        """Compute the outputs of `block` as it now is, and forget what no later block reads."""
        later = self.blocks[self.blocks.index(block) + 1 :]
        needed = {node for other in later for node in other.inputs}
        if later:
            self._quantized |= self._run(block, block.outputs, self._quantized, {})
        for stores in (self._float, self._quantized):
            for node in [node for node in stores if node not in needed]:
                stores.pop(node).release()

    def read_quantized(self, nodes: Iterable[fx.Node], indices: Indices) -> Values:
        """Values behind the quantized blocks passed so far, of the images `indices` [n]."""
        return {node: self._read(self._quantized[node], indices) for node in nodes}

    def read_float(self, nodes: Iterable[fx.Node], indices: Indices) -> Values:
        """Values in the float network."""
        return {node: self._read(self._float[node], indices) for node in nodes}

    def read_stage(self, rest: Block, indices: Indices) -> Values:
        """Float outputs of the stage that `rest` ends; computed once per stage."""
        if self._stage[0] != rest.stage:
            for store in self._stage[1].values():
                store.release()
            outputs = compared_outputs(rest)
            self._stage = rest.stage, self._run(rest, outputs, self._float, self.float_network)
        return {node: self._read(store, indices) for node, store in self._stage[1].items()}

    def statistics(self, block: Block) -> Statistics:
        """Mean and deviation [out] of every layer of `block` in float, by node name, on a chunk."""
        count = min(self.batch_size or CHUNK, self.num_samples)
        values = self.read_float(block.inputs, slice(count))
        with torch.no_grad():
            run_nodes(self._graph_module, block.nodes, values, self.float_network, count)
        found: Statistics = {}
        for node in block.nodes:
            if node.name in block.layers:
                axis = -1 if node.target is aten.linear.default else 1
                channels = values[node].movedim(axis, 0).flatten(1)
                found[node.name] = channels.mean(1), channels.std(1)
        return found

    def _run(
        self, block: Block, outputs: Sequence[fx.Node], source: Stores, overrides: Overrides
    ) -> Stores:
        made: Stores = {}
        step = self.batch_size or CHUNK
        for start in range(0, self.num_samples, step):
            count = min(step, self.num_samples - start)
            rows = slice(start, start + count)
            values = {node: self._read(source[node], rows) for node in block.inputs}
            with torch.no_grad():
                run_nodes(self._graph_module, block.nodes, values, overrides, count)
            for node in outputs:
                # A window partition has several rows per image.
                value = values[node].reshape(count, -1, *values[node].shape[1:])
                if node not in made:
                    made[node] = self._cache.allocate(self.num_samples, value.shape[1:])
                made[node].write(start, value)
        return made

    def _read(self, store: SampleStore, indices: Indices) -> torch.Tensor:
        """What `_run` stored, as the graph has it; images are stored as they came."""
        samples = store.read(indices).to(self.device)
        return samples if store is self._images else samples.flatten(0, 1)
