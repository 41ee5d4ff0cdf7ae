"""Blocks and stages of a network, found on its graph: the units that reconstruction works on.

A block is a quantized layer with the operators that follow it (bias, activation, pooling, add); a
depthwise convolution and the pointwise one that alone reads it are one block, as in MobileOne; where
that is chosen, the layers of a chain are one too (`reptrt.calibrators.reconstruction.chains`). The quantizers of what a block
reads belong to the block: their scales are learned with it. A stage is a run of blocks whose outputs have
one spatial size, as in RepVGG, MobileOne and the papers' figures. Several values may cross a border (a
neck, a skip connection).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import groupby

import torch
from torch import fx

from reptrt.calibrators.quantized.moving import MOVING
from reptrt.calibrators.quantized.placement import is_depthwise
from reptrt.calibrators.quantized.quantized_model import QuantizedModel, is_activation_call
from reptrt.calibrators.quantized.run_nodes import activation_nodes
from reptrt.calibrators.reconstruction.chains import find_chains, is_read_outside
from reptrt.calibrators.settings import Units

aten = torch.ops.aten


class UnknownBlockError(ValueError):
    """A declared block or stage names no layer."""

    exit_code = 2


@dataclass(frozen=True)
class Block:
    """Nodes of the graph that are reconstructed together.

    Attributes:
        name: its first layer.
        layers: node name -> layer name of its quantized convolutions and linears.
        nodes: what it computes, in graph order; parameters and sizes are not listed.
        inputs: activations that it reads and others compute.
        outputs: activations that others read, or that the network returns.
        stage: index of its stage.
    """

    name: str
    layers: dict[str, str]
    nodes: tuple[fx.Node, ...]
    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]
    stage: int


def find_blocks(
    model: QuantizedModel,
    blocks: Sequence[str] = (),
    stages: Sequence[str] = (),
    units: Units = "layers",
) -> list[Block]:
    """Every block of `model` in the order of computation.

    Args:
        model: with quantizers inserted.
        blocks: layer-name patterns; consecutive layers that match one of them are one block.
        stages: layer-name patterns; the blocks whose first layer matches one of them are a stage.
        units: what else is one block: nothing, or a chain without layers of `blocks`. What is computed
            behind a chain before the next layer, a LayerNorm, is compared with float too.

    Raises:
        UnknownBlockError: a pattern matches no layer.
    """
    _require_matches(model, [*blocks, *stages])
    graph = model.graph_module.graph
    activations = activation_nodes(graph)
    layers = model.placement.layers
    weighted = [node for node in activations if node.name in layers]
    group = _declared_runs(weighted, layers, blocks)
    if units == "chains":
        group |= find_chains(activations, set(weighted), apart=set(group))
    order = _order_blocks(weighted, group)
    if not order:
        return []
    owner = _assign(activations, order)
    members: list[list[fx.Node]] = [[] for _ in range(max(owner.values()) + 1)]
    for node in activations:
        if node.op != "placeholder":
            members[owner[node]].append(node)
    found: list[Block] = []
    for nodes in members:
        stage = _stage(nodes, layers, stages, found)
        found.append(_describe(nodes, layers, activations, stage))
    return found


def rest_of_stage(blocks: Sequence[Block], index: int) -> Block | None:
    """The blocks behind `blocks[index]` in its stage, joined; None behind the last one."""
    own = blocks[index]
    rest = [block for block in blocks[index + 1 :] if block.stage == own.stage]
    if not rest:
        return None
    nodes = tuple(node for block in rest for node in block.nodes)
    layers = {name: layer for block in rest for name, layer in block.layers.items()}
    inside = set(nodes)
    inputs = dict.fromkeys(n for block in rest for n in block.inputs if n not in inside)
    return Block(rest[0].name, layers, nodes, tuple(inputs), rest[-1].outputs, own.stage)


def compared_outputs(block: Block) -> list[fx.Node]:
    """Outputs that have a float counterpart: all but the block's own quantized inputs."""
    return [node for node in block.outputs if not is_activation_call(node)]


def _require_matches(model: QuantizedModel, patterns: Sequence[str]) -> None:
    layers = list(dict.fromkeys(model.placement.layers.values()))
    names = f"they are called {layers[0]!r} ... {layers[-1]!r}" if layers else "there is none"
    for pattern in patterns:
        if not any(fnmatchcase(layer, pattern) for layer in layers):
            raise UnknownBlockError(
                f"block or stage {pattern!r} matches no quantized layer; {names} (see scales.json)"
            )


def _declared_runs(
    weighted: Sequence[fx.Node], layers: dict[str, str], declared: Sequence[str]
) -> dict[fx.Node, fx.Node]:
    """The first of the consecutive layers that match one pattern, for each layer that matches."""
    first: dict[fx.Node, fx.Node] = {}
    for pattern, run in groupby(weighted, lambda node: _match(layers[node.name], declared)):
        if pattern is not None:
            nodes = list(run)
            first |= dict.fromkeys(nodes, nodes[0])
    return first


def _order_blocks(
    weighted: Sequence[fx.Node], group: Mapping[fx.Node, fx.Node]
) -> dict[fx.Node, int]:
    """Index of the block of each quantized layer: its `group`, its pointwise reader's, or its own.

    Blocks are ordered by their last layers: what reads a block reads it behind its last layer.
    """
    block: dict[fx.Node, fx.Node] = {}
    for node in reversed(weighted):
        reader = _pointwise_reader(node, block)
        alone = node if reader is None or reader in group else block[reader]
        block[node] = group.get(node, alone)
    last_first = list(dict.fromkeys(block.values()))
    return {node: len(last_first) - 1 - last_first.index(block[node]) for node in weighted}


def _match(name: str, patterns: Sequence[str]) -> str | None:
    return next((pattern for pattern in patterns if fnmatchcase(name, pattern)), None)


def _pointwise_reader(node: fx.Node, layers: Collection[fx.Node]) -> fx.Node | None:
    """The one of `layers` that alone reads `node`, if that is a depthwise convolution."""
    if node.target is not aten.conv2d.default or not is_depthwise(node):
        return None
    while len(node.users) == 1:
        node = next(iter(node.users))
        if node in layers:
            return node
    return None


def _assign(activations: list[fx.Node], group: dict[fx.Node, int]) -> dict[fx.Node, int]:
    """Block of each node: that of what it reads last, but inputs are quantized by their reader."""
    owner: dict[fx.Node, int] = {}
    for node in activations:
        known = [owner[source] for source in node.all_input_nodes if source in owner]
        owner[node] = group.get(node, max(known, default=0))
    quantized: set[fx.Node] = set()
    for node in activations:
        moves = node.target in MOVING
        if is_activation_call(node) or (
            moves and any(n in quantized for n in node.all_input_nodes)
        ):
            quantized.add(node)
    for node in reversed(activations):
        readers = [owner[user] for user in node.users if user in owner]
        if node in quantized and readers:
            owner[node] = min(readers)
    for node in activations:  # a split's parts stay with it: only tensors cross a border
        for source in node.all_input_nodes:
            if source in owner and isinstance(source.meta.get("val"), (tuple, list)):
                owner[node] = owner[source]
    return owner


def _stage(
    nodes: list[fx.Node], layers: dict[str, str], declared: Sequence[str], found: list[Block]
) -> int:
    """Index of the stage of the next block."""
    if not found:
        return 0
    before = found[-1].nodes
    changes = _mark(nodes, layers, declared) != _mark(before, layers, declared)
    return found[-1].stage + changes


def _mark(nodes: Sequence[fx.Node], layers: dict[str, str], declared: Sequence[str]) -> object:
    """What blocks of one stage have in common: a declared pattern, else the spatial size."""
    own = [node for node in nodes if node.name in layers]
    shape = nodes[-1].meta["val"].shape
    is_map = len(shape) == 4 and own[-1].target is not aten.linear.default
    size = shape[2:] if is_map else shape[1:-1]  # behind a linear, channels come last
    return _match(layers[own[0].name], declared) or tuple(size)


def _describe(
    nodes: list[fx.Node], layers: dict[str, str], activations: list[fx.Node], stage: int
) -> Block:
    inside, tensors = set(nodes), set(activations)
    inputs = [s for n in nodes for s in n.all_input_nodes if s in tensors and s not in inside]
    outputs = [node for node in nodes if is_read_outside(node, inside, tensors)]
    own = {node.name: layers[node.name] for node in nodes if node.name in layers}
    return Block(
        next(iter(own.values())),
        own,
        tuple(nodes),
        tuple(dict.fromkeys(inputs)),
        tuple(outputs),
        stage,
    )
