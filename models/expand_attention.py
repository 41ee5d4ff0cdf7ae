"""Write fused attention as the operators it is made of, so that each of them can be quantized.

softmax(scale * Q K^T + mask) V, with the scale behind the first product as in "Attention Is All You
Need" (arXiv:1706.03762, eq. 1).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx
from torch.fx.operator_schemas import normalize_function

aten = torch.ops.aten

FUSED = aten.scaled_dot_product_attention.default


def expand_attention(graph_module: fx.GraphModule) -> int:
    """Replace fused attention by matmul, mul, add, softmax and matmul, in place; return how many.

    Causal attention, dropout and grouped queries are left fused. A query whose mask hides every key
    gets NaN, where PyTorch's operator may return 0.

    Args:
        graph_module: traced network (`reptrt.models.graph.trace`); new nodes know their shapes as others do.
    """
    expanded = 0
    for node in list(graph_module.graph.nodes):
        arguments = _arguments(node) if node.target is FUSED else None
        if arguments is None or any(arguments.get(name) for name in _UNSUPPORTED):
            continue
        with graph_module.graph.inserting_before(node):
            node.replace_all_uses_with(_expand(graph_module.graph, arguments))
        graph_module.graph.erase_node(node)
        expanded += 1
    graph_module.recompile()
    return expanded


_UNSUPPORTED = ("is_causal", "dropout_p", "enable_gqa")


def _arguments(node: fx.Node) -> Mapping[str, Any]:
    """Arguments of a call of `FUSED` by name, defaults included."""
    normalized = normalize_function(
        FUSED, node.args, node.kwargs, normalize_to_only_use_kwargs=True
    )
    assert normalized is not None
    return normalized.kwargs


def _expand(graph: fx.Graph, arguments: Mapping[str, Any]) -> fx.Node:
    query, key, value, mask = (arguments[n] for n in ("query", "key", "value", "attn_mask"))
    scale = arguments.get("scale") or 1 / math.sqrt(query.meta["val"].shape[-1])
    scores = _call(graph, aten.matmul.default, query, _call(graph, aten.transpose.int, key, -2, -1))
    scores = _call(graph, aten.mul.Tensor, scores, scale)
    if mask is not None and mask.meta["val"].dtype == torch.bool:
        hidden = _call(graph, aten.logical_not.default, mask)
        scores = _call(graph, aten.masked_fill.Scalar, scores, hidden, -math.inf)
    elif mask is not None:
        scores = _call(graph, aten.add.Tensor, scores, mask)
    probabilities = _call(graph, aten.softmax.int, scores, -1)
    return _call(graph, aten.matmul.default, probabilities, value)


def _call(graph: fx.Graph, operator: Any, *arguments: Any) -> fx.Node:
    """Add a node with a plain name, and the shape that its value will have."""
    name = operator.__name__.partition(".")[0]
    node = graph.create_node("call_function", operator, arguments, name=name)
    values = fx.map_arg(arguments, lambda argument: argument.meta["val"])
    with values[0].fake_mode:
        node.meta["val"] = operator(*values)
    return node
