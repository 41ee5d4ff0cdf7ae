"""Pools that end in one point, and the products behind them, which run as 1x1 convolutions."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np

from reptrt.engines.fusion_rules.convolutions import is_product
from reptrt.engines.fusion_rules.network import Network, Node
from reptrt.engines.fusion_rules.rule import Build, Evidence, Rule

VIEWS = ("Flatten", "Reshape", "Squeeze", "Unsqueeze")


class ReduceToPool(Rule):
    """A mean over height and width is a global average pool.

    hmorimitsu/ptlflow#65 lists ReduceMean as POOLING.
    """

    evidence: ClassVar[Evidence] = Evidence.REPORTED

    def apply(self, network: Network, build: Build) -> None:
        """Turn means over the last two of four axes into GlobalAveragePool."""
        for node in network.nodes("AveragePool"):
            result = network.tensors[node.outputs[0]]
            source = network.tensors[node.inputs[0]]
            if len(result.dims) == 4 and node.ints("kernel_shape") == source.dims[2:]:
                node.op = "GlobalAveragePool"
        for node in network.nodes("ReduceMean"):
            source = network.tensors[node.inputs[0]]
            if len(source.dims) != 4 or self._axes(network, node) != {2, 3}:
                continue
            node.op, node.weights = "GlobalAveragePool", []
            result = network.tensors[node.outputs[0]]
            if len(result.dims) == 2:
                _insert_view(network, node, (*source.dims[:2], 1, 1))

    def _axes(self, network: Network, node: Node) -> set[int]:
        axes = node.ints("axes")
        if node.weights:
            values = network.tensors[node.weights[0]].values
            axes = () if values is None else tuple(int(axis) for axis in np.ravel(values))
        return {axis % 4 for axis in axes}


class ProductOfPoint(Rule):
    """A100, TITAN RTX: the classifier is a 1x1 convolution, with a view behind it, none before."""

    evidence: ClassVar[Evidence] = Evidence.SEEN

    def apply(self, network: Network, build: Build) -> None:
        """Turn products of [N, C] into convolutions of [N, C, 1, 1]."""
        for node in network.nodes("Gemm", "MatMul"):
            result = network.tensors[node.outputs[0]]
            if not is_product(node) or len(result.dims) != 2 or len(node.inputs) != 1:
                continue
            self._read_point(network, node)
            node.layer = "CaskConvolution"
            _insert_view(network, node, (*result.dims, 1, 1))

    def _read_point(self, network: Network, node: Node) -> None:
        """Read what the view before `node` reads, where that is a point already."""
        view = network.writer(node.inputs[0])
        if view is None or view.op not in VIEWS:
            return
        source = network.tensors[view.inputs[0]]
        if len(source.dims) == 4 and source.is_point:
            network.rewire(node, view.outputs[0], source.name)
            if not network.readers(view.outputs[0]) and view.outputs[0] not in network.outputs:
                network.remove(view)


def _insert_view(network: Network, node: Node, dims: tuple[int, ...]) -> None:
    """Let `node` write a tensor of `dims`, and a view behind it what `node` wrote."""
    result = node.outputs[0]
    inner = network.fresh_tensor(result, network.tensors[result].form)
    network.tensors[inner] = replace(network.tensors[inner], dims=dims)
    network.remove(node)
    node.outputs = [inner]
    network.add(node)
    parts = [f"reshape_after_{node.parts[-1]}"]
    network.add(Node("Reshape", [inner], [result], parts, node.order))
