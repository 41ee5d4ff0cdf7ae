"""The calibration images on their way through a network, block by block: in float and quantized."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import fx

from reptrt.calibrators.base import Batches
from reptrt.calibrators.feed import Feed, tensors_of
from reptrt.calibrators.importance import NO_IMPORTANCE, Importance
from reptrt.calibrators.quantized.quantized_model import QuantizedModel
from reptrt.calibrators.quantized.run_nodes import Overrides, run_nodes
from reptrt.calibrators.reconstruction.activation_cache import ActivationCache, SampleStore
from reptrt.calibrators.reconstruction.blocks import Block, compared_outputs
from reptrt.calibrators.reconstruction.work import elements

CHUNK = 32
"""Most images that go through a block at once, where the graph's batch is dynamic."""

MOST_ELEMENTS = 1 << 24
"""Of the largest tensor then: 64 MiB."""

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
        importance: of the elements of what blocks make.
        correction: share of the errors of the blocks before it that a block is to correct, 0..1.

    Attributes:
        blocks: as given.
        num_samples: calibration images.
        device: where the network is.
        batch_size: images that the graph takes at once; None for any number.
        float_network: as given.
        importance: as given.
    """

    def __init__(
        self,
        model: QuantizedModel,
        blocks: Sequence[Block],
        batches: Batches,
        cache: ActivationCache,
        float_network: Overrides,
        importance: Importance = NO_IMPORTANCE,
        correction: float = 1.0,
    ) -> None:
        self.blocks, self.float_network, self.importance = blocks, float_network, importance
        self._graph_module, self._cache = model.graph_module, cache
        self._correction = correction
        self._own: Stores = {}
        self._stage: tuple[int, Stores] = (-1, {})
        read = [node for node in model.graph_module.graph.nodes if node.op == "placeholder"]
        self._float = self._store(read, batches)
        self._quantized = dict(self._float)
        self._inputs = set(self._float.values())

    def _store(self, read: Sequence[fx.Node], batches: Batches) -> Stores:
        """Keep every sample; what all samples of a batch share is kept with each of them."""
        stores: Stores = {}
        shared: list[torch.Tensor] = []
        self.num_samples, same = 0, True
        for batch in batches:
            tensors, count = tensors_of(batch), len(batch)
            batched = batch.batched if isinstance(batch, Feed) else (True,)
            common = [tensor for tensor, own in zip(tensors, batched, strict=True) if not own]
            if not stores:
                shared, self.device = common, batch.device
                self._common = _independent(self._graph_module.graph, read, batched)
                sizes = [
                    n.meta["val"].shape[0] for n, own in zip(read, batched, strict=True) if own
                ]
                room = sum(map(len, batches)) if shared else len(batches) * count
            same = same and all(map(torch.equal, shared, common))
            for node, tensor, own in zip(read, tensors, batched, strict=True):
                value = tensor if own else tensor.expand(count, *tensor.shape)
                if node not in stores:
                    stores[node] = self._cache.allocate(room, value.shape[1:], value.dtype)
                stores[node].write(self.num_samples, value)
            self.num_samples += count
        fixed = next((size for size in sizes if isinstance(size, int)), None)
        self.batch_size = fixed if sizes and same else 1
        return stores

    def pass_in_float(self, block: Block) -> Statistics:
        """Compute the float outputs of `block`, and what it makes in float of the quantized blocks' outputs.

        Returns:
            Mean and deviation [out] of every layer in float, by node name, on the first images.
        """
        found: Statistics = {}
        self._float |= self._run(block, block.outputs, self._float, self.float_network, found)
        if self._correction < 1:
            outputs = compared_outputs(block)
            self._own = self._run(block, outputs, self._quantized, self.float_network)
        return found

    def pass_quantized(self, block: Block) -> None:
        """Compute the outputs of `block` as it now is, and forget what no later block reads."""
        later = self.blocks[self.blocks.index(block) + 1 :]
        needed = {node for other in later for node in other.inputs}
        if later:
            self._quantized |= self._run(block, block.outputs, self._quantized, {})
        for stores in (self._float, self._quantized):
            for node in [node for node in stores if node not in needed]:
                stores.pop(node).release()
        for store in self._own.values():
            store.release()
        self._own = {}

    def read_quantized(self, nodes: Iterable[fx.Node], indices: Indices) -> Values:
        """Values behind the quantized blocks passed so far, of the images `indices` [n]."""
        return {node: self._read(self._quantized, node, indices) for node in nodes}

    def read_float(self, nodes: Iterable[fx.Node], indices: Indices) -> Values:
        """Values in the float network."""
        return {node: self._read(self._float, node, indices) for node in nodes}

    def read_target(self, nodes: Iterable[fx.Node], indices: Indices) -> Values:
        """What the present block should make of the images `indices` [n].

        With a `correction` of 1 the float network's values, with 0 those of the float block behind quantized ones.
        """
        target = self.read_float(nodes, indices)
        for node in self._own:
            own = self._read(self._own, node, indices)
            target[node] = own + self._correction * (target[node] - own)
        return target

    def read_stage(self, rest: Block, indices: Indices) -> Values:
        """Float outputs of the stage that `rest` ends; computed once per stage."""
        if self._stage[0] != rest.stage:
            for store in self._stage[1].values():
                store.release()
            outputs = compared_outputs(rest)
            self._stage = rest.stage, self._run(rest, outputs, self._float, self.float_network)
        return {node: self._read(self._stage[1], node, indices) for node in self._stage[1]}

    def _run(
        self,
        block: Block,
        outputs: Sequence[fx.Node],
        source: Stores,
        overrides: Overrides,
        statistics: Statistics | None = None,
    ) -> Stores:
        """Run `block` on all images and keep `outputs`; `statistics` takes those of the first chunk."""
        made: Stores = {}
        step = self.batch_size or images_at_once(block.nodes)
        for start in range(0, self.num_samples, step):
            count = min(step, self.num_samples - start)
            rows = slice(start, start + count)
            values = {node: self._read(source, node, rows) for node in block.inputs}
            with torch.no_grad():
                run_nodes(self._graph_module, block.nodes, values, overrides, count)
            if statistics is not None and not start:
                statistics.update(_statistics(block, values))
            for node in outputs:
                # A window partition has several rows per image.
                value = (
                    values[node].expand(count, *values[node].shape)
                    if node in self._common
                    else values[node].reshape(count, -1, *values[node].shape[1:])
                )
                if node not in made:
                    shape, dtype = value.shape[1:], value.dtype
                    made[node] = self._cache.allocate(self.num_samples, shape, dtype)
                made[node].write(start, value)
        return made

    def _read(self, stores: Stores, node: fx.Node, indices: Indices) -> torch.Tensor:
        """What `_run` stored, as the graph has it; inputs are stored as they came."""
        samples = stores[node].read(indices).to(self.device)
        if node in self._common:
            return samples[0]
        return samples if stores[node] in self._inputs else samples.flatten(0, 1)


def fixed_batch(graph_module: fx.GraphModule) -> int | None:
    """Samples that the graph takes at once; None for any number."""
    sizes = [
        size
        for node in graph_module.graph.nodes
        if node.op == "placeholder"
        for size in node.meta["val"].shape[:1]
    ]
    if any(not isinstance(size, int) for size in sizes):
        return None
    return int(sizes[0]) if sizes else 1


def images_at_once(nodes: Sequence[fx.Node]) -> int:
    """Images that go through `nodes` at once: as many as keep the largest tensor below `MOST_ELEMENTS`."""
    largest = max((elements(node) for node in nodes), default=1)
    return max(1, min(CHUNK, MOST_ELEMENTS // max(1, largest)))


def _independent(graph: fx.Graph, read: Sequence[fx.Node], batched: Sequence[bool]) -> set[fx.Node]:
    """Nodes that all samples of a batch share, since no batched input reaches them."""
    own = {node for node, is_own in zip(read, batched, strict=True) if is_own}
    shared: set[fx.Node] = set()
    for node in graph.nodes:
        sources = node.all_input_nodes
        is_shared = node.op == "placeholder" or any(source in shared for source in sources)
        if is_shared and node not in own and not any(source in own for source in sources):
            shared.add(node)
        elif node.op == "placeholder" or any(source in own for source in sources):
            own.add(node)
    return shared


def _statistics(block: Block, values: Values) -> Statistics:
    found: Statistics = {}
    for node in block.nodes:
        if node.name in block.layers:
            axis = -1 if node.target is aten.linear.default else 1
            channels = values[node].movedim(axis, 0).flatten(1)
            found[node.name] = channels.mean(1), channels.std(1)
    return found
