"""Run some nodes of a graph, with chosen nodes replaced: the float network, or a learned block."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import fx
from torch.utils._pytree import tree_leaves

from reptrt.calibrators.feed import Batch, tensors_of
from reptrt.calibrators.quantized.quantized_model import QuantizedModel
from reptrt.calibrators.quantized.quantizers import TensorQuantizer
from reptrt.models.graph import EXAMPLE_BATCH, get_tensor

Overrides = Mapping[fx.Node, Callable[..., torch.Tensor]]
"""Node -> function of its arguments that stands in for it."""


def activation_nodes(graph: fx.Graph) -> list[fx.Node]:
    """Nodes whose value depends on the images and is a tensor, in graph order."""
    found: dict[fx.Node, None] = {}
    for node in graph.nodes:
        depends = node.op == "placeholder" or any(n in found for n in node.all_input_nodes)
        if depends and node.op != "output" and not isinstance(node.meta.get("val"), torch.SymInt):
            found[node] = None
    return list(found)


def run_nodes(
    graph_module: fx.GraphModule,
    nodes: Sequence[fx.Node],
    values: dict[fx.Node, torch.Tensor],
    overrides: Overrides,
    batch_size: int,
) -> None:
    """Compute `nodes` into `values`, which already holds the activations that they read.

    Parameters, quantized weights and sizes are computed as they are needed.

    Args:
        graph_module: owner of parameters and quantizers.
        nodes: in the order of computation.
        values: node -> tensor [N, ...]; grows.
        overrides: replace the computation of a node.
        batch_size: images, N.
    """
    for node in nodes:
        _value(graph_module, node, values, overrides, batch_size)


def _value(
    graph_module: fx.GraphModule,
    node: fx.Node,
    values: dict[fx.Node, torch.Tensor],
    overrides: Overrides,
    batch_size: int,
) -> torch.Tensor | int:
    """Value of `node`, computed unless it is known."""
    if isinstance(node.meta.get("val"), torch.SymInt):
        return concrete_size(node.meta["val"], batch_size)
    if node not in values:
        arguments, keywords = fx.map_arg(
            (node.args, node.kwargs),
            lambda source: _value(graph_module, source, values, overrides, batch_size),
        )
        values[node] = _call(graph_module, node, overrides)(*arguments, **keywords)
    return values[node]


def _call(
    graph_module: fx.GraphModule, node: fx.Node, overrides: Overrides
) -> Callable[..., torch.Tensor]:
    if node in overrides:
        return overrides[node]
    if node.op == "get_attr":
        return lambda: get_tensor(graph_module, node)
    if node.op == "call_module":
        return graph_module.get_submodule(str(node.target))
    assert callable(node.target)
    return node.target


def float_overrides(model: QuantizedModel, weights: QuantizedModel | None = None) -> Overrides:
    """Overrides that make `model` a float network of weights that do not change any more.

    Args:
        model: whose nodes are overridden.
        weights: a copy of `model` that has the weights; None takes those that `model` has now.
    """
    owner = (weights or model).graph_module
    overrides: dict[fx.Node, Callable[..., torch.Tensor]] = {}
    for node in model.graph_module.graph.nodes:
        if node.op == "call_module":
            overrides[node] = _first
        elif node.op == "get_attr":
            overrides[node] = _constant(get_tensor(owner, node).detach().clone())
    return overrides


def float_copy(model: QuantizedModel) -> Callable[[Batch], tuple[torch.Tensor, ...]]:
    """A copy of the float network of `model`, which later changes do not reach."""
    graph_module = copy.deepcopy(model.graph_module)
    for module in graph_module.modules():
        if isinstance(module, TensorQuantizer):
            module.enabled = False

    def run(batch: Batch) -> tuple[torch.Tensor, ...]:
        return tuple(tree_leaves(graph_module(*tensors_of(batch))))

    return run


def _first(value: torch.Tensor) -> torch.Tensor:
    return value


def _constant(tensor: torch.Tensor) -> Callable[..., torch.Tensor]:
    return lambda: tensor


def concrete_size(symbol: int | torch.SymInt, batch_size: int) -> int:
    """Value of a size that depends on the batch; open sides of images count as they were traced, the usual ones."""
    if isinstance(symbol, int):
        return symbol
    expression, shapes = symbol.node.expr, symbol.node.shape_env
    assert shapes is not None  # `torch.export` made the symbol
    is_new = hasattr(shapes, "backed_var_to_val")  # of PyTorch, which renamed it
    traced = shapes.backed_var_to_val if is_new else shapes.var_to_val
    usual = {free: int(traced.get(free, EXAMPLE_BATCH)) for free in expression.free_symbols}
    known = {free: batch_size if side == EXAMPLE_BATCH else side for free, side in usual.items()}
    return int(expression.subs(known))
