"""What each layer costs, from what the kernels of an engine cost.

A kernel's time goes to the layers whose nodes it computes. A node that multiplies no weights, such as an
activation, an addition or a QuantizeLinear, belongs to the layer in front of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import onnx

from reptrt.engines.cost.estimate import EngineCost
from reptrt.engines.inspection.kernel import Kernel

_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def layer_times(
    kernels: Sequence[Kernel], cost: EngineCost, graph: onnx.GraphProto
) -> dict[str, float]:
    """Microseconds of each weighted layer of `graph`, and of what stands behind it.

    Args:
        kernels: of the engine.
        cost: of the same kernels.
        graph: that the engine was made of, in topological order.
    """
    owners = _owners(graph)
    microseconds = {kernel.name: kernel.microseconds for kernel in cost.kernels}
    times: defaultdict[str, float] = defaultdict(float)
    for kernel in kernels:
        mine = _of(kernel.onnx_layers, owners)
        for layer in mine:
            times[layer] += microseconds.get(kernel.name, 0.0) / len(mine)
    return dict(times)


def _of(nodes: Iterable[str], owners: Mapping[str, str]) -> list[str]:
    """The layers that own `nodes`: those among them that are layers, else those in front."""
    known = [name for name in nodes if name in owners]
    layers = [name for name in known if owners[name] == name]
    return list(dict.fromkeys(layers or (owners[name] for name in known)))


def layer_neighbours(graph: onnx.GraphProto) -> dict[str, set[str]]:
    """Weighted layer -> weighted layers that feed it or that it feeds, with no other in between."""
    owners, makers = _owners(graph), _makers(graph)
    found: defaultdict[str, set[str]] = defaultdict(set)
    for node in graph.node:
        layer = owners.get(_name(node))
        if layer is None:
            continue
        for tensor in node.input:
            front = owners.get(makers.get(tensor, ""))
            if front is not None and front != layer:
                found[layer].add(front)
                found[front].add(layer)
    return dict(found)


def _owners(graph: onnx.GraphProto) -> dict[str, str]:
    """Node -> weighted layer that it is, or that the first of its inputs comes from."""
    constants = {tensor.name for tensor in graph.initializer}
    of_tensor: dict[str, str] = {}
    owners: dict[str, str] = {}
    for node in graph.node:
        inputs = [name for name in node.input if name]
        if node.op_type == "Constant" or (inputs and constants.issuperset(inputs)):
            constants.update(node.output)
            continue
        is_layer = node.op_type in _WEIGHTED and not constants.isdisjoint(node.input[:2])
        front = (of_tensor[name] for name in inputs if name in of_tensor)
        owner = _name(node) if is_layer else next(front, None)
        if owner is not None:
            owners[_name(node)] = owner
            of_tensor.update(dict.fromkeys(node.output, owner))
    return owners


def _makers(graph: onnx.GraphProto) -> dict[str, str]:
    return {tensor: _name(node) for node in graph.node for tensor in node.output}


def _name(node: onnx.NodeProto) -> str:
    """The name that TensorRT reports."""
    return str(node.name or f"node_of_{node.output[0]}")
