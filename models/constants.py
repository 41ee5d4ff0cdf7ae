"""What a traced graph computes from parameters alone: evaluated in float64, and folded into weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import fx

from reptrt.models.parameters import (
    add_parameter,
    free_path,
    fresh_path,
    get_tensor,
    set_parameter,
)

aten = torch.ops.aten

_WEIGHTED = (
    aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.linear.default,
    aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input,
)  # fmt: skip


class Constants:
    """Values of the nodes that depend on no image, in float64, computed when first asked for."""

    def __init__(self, graph_module: fx.GraphModule) -> None:
        self._graph_module = graph_module
        self._constant: set[fx.Node] = set()
        for node in graph_module.graph.nodes:
            if node.op == "get_attr" or (
                _is_pure(node) and self._constant.issuperset(node.all_input_nodes)
            ):
                self._constant.add(node)

    def __contains__(self, value: object) -> bool:
        return value in self._constant

    def include(self, nodes: Iterable[object]) -> None:
        """Parameters that were added to the graph."""
        self._constant |= {node for node in nodes if isinstance(node, fx.Node)}

    def tensor(self, value: object) -> torch.Tensor | None:
        """`value` as a tensor if it is a number or a constant node, else None."""
        if isinstance(value, int | float) and not isinstance(value, bool):
            return torch.tensor(float(value), dtype=torch.float64)
        if not isinstance(value, fx.Node) or value not in self._constant:
            return None
        result = compute(self._graph_module, value, {})
        return result if isinstance(result, torch.Tensor) else None


def compute(graph_module: fx.GraphModule, node: fx.Node, values: dict[fx.Node, object]) -> object:
    """Value of `node` in float64, from `values`, which grows, and from parameters.

    What depends on an open batch is computed for one image.
    """
    pending = [node]
    while pending:
        current = pending[-1]
        if isinstance(size := current.meta.get("val"), torch.SymInt):
            values.setdefault(current, _size_for_one(size))
        missing = [source for source in current.all_input_nodes if source not in values]
        if current in values or not missing:
            if current not in values:
                values[current] = _evaluate(graph_module, current, values)
            pending.pop()
        else:
            pending += missing
    return values[node]


@torch.no_grad()
def fold_weights(graph_module: fx.GraphModule) -> int:
    """Store every weight and bias that is computed from parameters alone as one; return how many.

    So are the weights of weight standardization, weight normalization, spectral normalization, low-rank
    updates and learned gains. They keep their layer's name.
    """
    constants = Constants(graph_module)
    stored: dict[fx.Node, tuple[fx.Node, str]] = {}
    for layer in list(graph_module.graph.nodes):
        if layer.target not in _WEIGHTED:
            continue
        for index, value in enumerate(layer.args[1:3], start=1):
            if isinstance(value, fx.Node) and value.op != "get_attr" and value in constants:
                if value not in stored:
                    wanted = _wanted_path(value, "weight" if index == 1 else "bias")
                    stored[value] = _store(graph_module, value, constants), wanted
                layer.update_arg(index, stored[value][0])
    graph_module.graph.eliminate_dead_code()  # so that the names of what was folded are free
    for node, wanted in stored.values():
        tensor = get_tensor(graph_module, node)
        node.target = free_path(graph_module, wanted)
        set_parameter(graph_module, str(node.target), tensor)
    graph_module.recompile()
    return len(stored)


@torch.no_grad()
def share_weights(graph_module: fx.GraphModule) -> int:
    """Let layers of equal weights read one: a head that a file holds once per level; return how many.

    A weight of one value everywhere is left alone: such ones are equal by chance.
    """
    first: dict[tuple[object, ...], list[fx.Node]] = {}
    shared = 0
    for layer in list(graph_module.graph.nodes):
        weight = layer.args[1] if layer.target in _WEIGHTED else None
        if not isinstance(weight, fx.Node) or weight.op != "get_attr":
            continue
        value = get_tensor(graph_module, weight)
        if not value.numel() or value.min() == value.max():
            continue
        key = (layer.target, value.shape, value.dtype, float(value.double().sum()))
        alike = first.setdefault(key, [])
        same = next((w for w in alike if torch.equal(get_tensor(graph_module, w), value)), None)
        if same is None:
            alike.append(weight)
        elif same is not weight:
            layer.update_arg(1, same)
            shared += 1
    graph_module.graph.eliminate_dead_code()
    _drop_unread(graph_module)
    graph_module.recompile()
    return shared


def _drop_unread(graph_module: fx.GraphModule) -> None:
    """Forget the parameters and modules that nothing reads any more."""
    read = {str(node.target) for node in graph_module.graph.nodes if node.op == "get_attr"}
    for path, module in graph_module.named_modules():
        for name in [*module._parameters]:
            if (f"{path}.{name}" if path else name) not in read:
                del module._parameters[name]
    graph_module.delete_all_unused_submodules()


def parameters_behind(node: fx.Node) -> list[fx.Node]:
    """The parameters that a constant `node` is computed from, in the order of the graph."""
    found: dict[fx.Node, None] = {}
    pending = [node]
    while pending:
        current = pending.pop()
        if current.op == "get_attr":
            found[current] = None
        pending += [source for source in current.all_input_nodes if source not in found]
    return sorted(found)


def owner_of(parameter: fx.Node) -> str:
    """Path of the layer that owns a parameter, whose parametrizations count as its own."""
    path, _, _ = str(parameter.target).rpartition(".")
    return path.partition(".parametrizations.")[0] if ".parametrizations." in path else path


def _store(graph_module: fx.GraphModule, value: fx.Node, constants: Constants) -> fx.Node:
    tensor, like = constants.tensor(value), value.meta["val"]
    assert tensor is not None
    path = fresh_path(graph_module, "folded")
    return add_parameter(graph_module, path, tensor.to(like.dtype), value, like)


def _wanted_path(value: fx.Node, role: str) -> str:
    """The name that the layer itself gives to the `role`, weight or bias, that `value` computes."""
    sources = parameters_behind(value)
    same = [n for n in sources if n.meta["val"].shape == value.meta["val"].shape] or sources
    if not same:
        return f"{value.name}.{role}"
    owner = owner_of(same[0])
    return f"{owner}.{role}" if owner else str(same[0].target)


def _is_pure(node: fx.Node) -> bool:
    tags = getattr(node.target, "tags", ())
    return node.op == "call_function" and torch.Tag.nondeterministic_seeded not in tags


def _size_for_one(size: torch.SymInt) -> int:
    expression = size.node.expr
    return int(expression.subs(dict.fromkeys(expression.free_symbols, 1)))


def _evaluate(
    graph_module: fx.GraphModule, node: fx.Node, values: Mapping[fx.Node, object]
) -> object:
    if node.op == "get_attr":
        tensor = get_tensor(graph_module, node)
        return tensor.double() if tensor.is_floating_point() else tensor
    assert callable(node.target), f"{node.name}: {node.op} has no value without an image"
    known: Callable[[fx.Node], Any] = values.__getitem__
    arguments, keywords = fx.map_arg((node.args, node.kwargs), known)
    if keywords.get("dtype") in (torch.float32, torch.float16):
        keywords = {**keywords, "dtype": torch.float64}
    return node.target(*arguments, **keywords)
