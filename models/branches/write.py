"""Put a merged layer into a graph: its parameters under a free name, its node in front of the sum."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from reptrt.models.branches.linear_map import Convolution
from reptrt.models.parameters import (
    add_parameter,
    fresh_path,
    get_tensor,
    is_free,
    set_parameter,
)

aten = torch.ops.aten


@dataclass(frozen=True)
class MergedNode:
    """The parameters of a layer that was written.

    Attributes:
        name: of the layer, as far as it is free in the end.
        weight: node that reads the weight [out, ...].
        bias: node that reads the bias [out].
    """

    name: str
    weight: fx.Node
    bias: fx.Node


class Writer:
    """Writes merged layers into one graph, under names of its own until `name_layers`."""

    def __init__(self, graph_module: fx.GraphModule) -> None:
        self._graph_module = graph_module
        self._written: list[MergedNode] = []

    def write(
        self, root: fx.Node, source: fx.Node, layer: Convolution, name: str, *, is_linear: bool
    ) -> fx.Node:
        """Insert `layer` of `source` in front of `root`, whose output is like its own.

        Args:
            root: the sum.
            source: what the layer reads.
            layer: in float64.
            name: what it shall be called.
            is_linear: it is a linear layer, not a convolution.
        """
        dtype = root.meta["val"].dtype
        weight, bias = layer.weight.to(dtype), layer.bias.to(dtype)
        weight = weight[:, :, 0, 0] if is_linear else weight
        stored = self._store(root, name, weight, bias)
        graph = self._graph_module.graph
        with graph.inserting_before(root):
            if is_linear:
                arguments = (source, stored.weight, stored.bias)
                node = graph.call_function(aten.linear.default, arguments)
            else:
                node = _insert_convolution(root, source, layer, stored)
        node.meta = dict(root.meta)
        return node

    def name_layers(self) -> None:
        """Give every layer the name of the branch that it came from, where nothing else has it."""
        graph_module = self._graph_module
        graph_module.graph.eliminate_dead_code()
        for written in self._written:
            owner = written.name
            if not owner or not all(is_free(graph_module, f"{owner}.{r}") for r in _ROLES):
                owner = fresh_path(graph_module, f"{owner}.merged" if owner else "merged")
            for role, node in zip(_ROLES, (written.weight, written.bias), strict=True):
                value = get_tensor(graph_module, node)
                node.target = f"{owner}.{role}"
                set_parameter(graph_module, node.target, value)

    def _store(
        self, root: fx.Node, name: str, weight: torch.Tensor, bias: torch.Tensor
    ) -> MergedNode:
        """The layer of these parameters: that of a block which is called twice is stored once."""
        for known in self._written:
            own = [get_tensor(self._graph_module, node) for node in (known.weight, known.bias)]
            if torch.equal(own[0], weight) and torch.equal(own[1], bias):
                return known
        owner = fresh_path(self._graph_module, "merged_branches")
        paths = [f"{owner}.{role}" for role in _ROLES]
        first = next(iter(self._graph_module.graph.nodes))
        nodes = [
            add_parameter(self._graph_module, path, value, first, like=root.meta["val"])
            for path, value in zip(paths, (weight, bias), strict=True)
        ]
        self._written.append(MergedNode(name, *nodes))
        return self._written[-1]


_ROLES = ("weight", "bias")


def _insert_convolution(
    root: fx.Node, source: fx.Node, layer: Convolution, stored: MergedNode
) -> fx.Node:
    left, _, top, _ = layer.padding
    padding = [top, left]
    if not layer.is_symmetric:
        pads = [*layer.padding]
        padded = root.graph.call_function(aten.constant_pad_nd.default, (source, pads))
        with source.meta["val"].fake_mode:
            padded.meta["val"] = aten.constant_pad_nd.default(source.meta["val"], pads)
        source, padding = padded, [0, 0]
    sides = ([*layer.stride], padding, [*layer.dilation], layer.groups)
    arguments = (source, stored.weight, stored.bias, *sides)
    return root.graph.call_function(aten.conv2d.default, arguments)
