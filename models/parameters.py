"""Parameters of a traced graph: read, replace, and name what is added without touching what is there."""

from __future__ import annotations

import torch
from torch import fx, nn


def get_tensor(graph_module: nn.Module, node: fx.Node) -> torch.Tensor:
    """Parameter or buffer that a `get_attr` node reads."""
    value: object = graph_module
    for part in str(node.target).split("."):
        value = getattr(value, part)
    assert isinstance(value, torch.Tensor)
    return value


def set_parameter(graph_module: nn.Module, target: str, value: torch.Tensor) -> None:
    """Replace (or create) the parameter at dotted path `target`, and the modules that lead to it."""
    owner_path, _, name = target.rpartition(".")
    owner = graph_module
    for part in filter(None, owner_path.split(".")):
        if part not in owner._modules:
            owner.add_module(part, nn.Module())
        owner = owner.get_submodule(part)
    if name in owner._buffers:
        del owner._buffers[name]
    owner.register_parameter(name, nn.Parameter(value, requires_grad=False))


def fresh_path(graph_module: nn.Module, wanted: str) -> str:
    """`wanted`, or the first of `wanted_1`, `wanted_2`, ... where nothing is: a dotted path."""
    path, count = wanted, 0
    while _exists(graph_module, path):
        count += 1
        path = f"{wanted}_{count}"
    return path


def free_path(graph_module: fx.GraphModule, wanted: str) -> str:
    """As `fresh_path`, but a parameter that no node of the graph reads any more may be replaced."""
    return wanted if is_free(graph_module, wanted) else fresh_path(graph_module, wanted)


def is_free(graph_module: fx.GraphModule, path: str) -> bool:
    """Whether nothing is at `path`, or a tensor that no node of the graph reads any more."""
    if any(node.op == "get_attr" and node.target == path for node in graph_module.graph.nodes):
        return False
    owner_path, _, name = path.rpartition(".")
    owner = _owner(graph_module, owner_path)
    is_tensor = owner is not None and (name in owner._parameters or name in owner._buffers)
    return is_tensor or not _exists(graph_module, path)


def add_parameter(
    graph_module: fx.GraphModule,
    path: str,
    value: torch.Tensor,
    before: fx.Node,
    like: torch.Tensor,
) -> fx.Node:
    """Store `value` at `path` and read it in front of `before`, by a node of `like`'s fake mode."""
    set_parameter(graph_module, path, value)
    with graph_module.graph.inserting_before(before):
        node = graph_module.graph.get_attr(path)
    with like.fake_mode:  # type: ignore[attr-defined]  # a FakeTensor
        node.meta["val"] = torch.empty(value.shape, dtype=value.dtype, device=value.device)
    return node


def _exists(graph_module: nn.Module, path: str) -> bool:
    owner_path, _, name = path.rpartition(".")
    owner = _owner(graph_module, owner_path)
    return owner is not None and hasattr(owner, name)


def _owner(graph_module: nn.Module, path: str) -> nn.Module | None:
    owner: nn.Module | None = graph_module
    for part in filter(None, path.split(".")):
        owner = owner._modules.get(part) if owner is not None else None
    return owner
