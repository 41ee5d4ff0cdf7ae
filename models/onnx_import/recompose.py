"""LayerNormalization, put together again from the operators that opsets before 17 have for it.

    d = x - mean(x),   y = d / sqrt(mean(d^2) + epsilon) * gamma + beta

as PyTorch's exporters write it: means over the last axis, the square by Pow or Mul, gamma and beta
constants of that axis. What is written otherwise stays in parts: with a Reciprocal in the place of
Div, as of TensorFlow, or without gamma and beta.
"""

from __future__ import annotations

from typing import NamedTuple

import onnx_graphsurgeon as gs

from reptrt.engines.foreign.graphs import sort_nodes
from reptrt.models.onnx_import.canonical import CanonicalGraph


class _Norm(NamedTuple):
    """What a LayerNorm reads; `epsilon` and vectors of the last axis are constants."""

    source: gs.Tensor
    gamma: gs.Constant
    beta: gs.Constant
    epsilon: float


def recompose_norms(canonical: CanonicalGraph) -> int:
    """Make one node of every decomposed LayerNorm of `canonical.graph`, in place; return how many.

    What else reads a tensor in the middle of one keeps the operators that it needs.
    """
    found = [(node, _match(canonical, node)) for node in canonical.graph.nodes]
    norms = [(node, norm) for node, norm in found if norm is not None]
    for node, norm in norms:
        node.op, node.attrs = "LayerNormalization", {"axis": -1, "epsilon": norm.epsilon}
        node.inputs = [norm.source, norm.gamma, norm.beta]
    sort_nodes(canonical.graph.cleanup())
    return len(norms)


def _match(canonical: CanonicalGraph, adder: gs.Node) -> _Norm | None:
    """The LayerNorm whose last operator is `adder`."""
    scaled, beta = _split(adder, "Add")
    quotient, gamma = _split(_maker(scaled), "Mul")
    divider = _maker(quotient)
    if gamma is None or beta is None or divider is None or divider.op != "Div":
        return None
    deviation, root = divider.inputs
    variance, epsilon = _split(_maker(_read(root, "Sqrt")), "Add")
    source, squared = _source(canonical, deviation), _squared(_averaged(canonical, variance))
    if source is None or epsilon is None or epsilon.values.size != 1:
        return None
    if squared is not deviation and _source(canonical, squared) is not source:
        return None  # the mean may be taken away twice, for the square and for the quotient
    if any(vector.values.shape != canonical.shapes[source.name][-1:] for vector in (gamma, beta)):
        return None
    return _Norm(source, gamma, beta, float(epsilon.values.reshape(-1)[0]))


def _source(canonical: CanonicalGraph, tensor: gs.Tensor | None) -> gs.Tensor | None:
    """x, where `tensor` is x less its mean."""
    node = _maker(tensor)
    if node is None or node.op != "Sub":
        return None
    source, mean = node.inputs
    return source if _averaged(canonical, mean) is source else None


def _averaged(canonical: CanonicalGraph, tensor: gs.Tensor | None) -> gs.Tensor | None:
    """x, where `tensor` is the mean of x over its last axis, which stays as a side of 1."""
    node = _maker(tensor)
    if node is None or node.op != "ReduceMean" or not node.attrs.get("keepdims", 1):
        return None
    source, *stated = node.inputs
    axes = getattr(stated[0], "values", ()) if stated else node.attrs.get("axes", ())
    last = len(canonical.shapes.get(source.name, ())) - 1
    return source if last > 0 and [int(axis) % (last + 1) for axis in axes] == [last] else None


def _squared(tensor: gs.Tensor | None) -> gs.Tensor | None:
    """x, where `tensor` is its square."""
    node = _maker(tensor)
    if node is not None and node.op == "Mul" and node.inputs[0] is node.inputs[1]:
        return node.inputs[0]
    source, exponent = _split(node, "Pow")
    return source if exponent is not None and (exponent.values == 2).all() else None


def _split(node: gs.Node | None, op: str) -> tuple[gs.Tensor | None, gs.Constant | None]:
    """What an `op` of a tensor and a constant reads, in either order; nothing if it is none."""
    if node is None or node.op != op:
        return None, None
    first, second = node.inputs
    if isinstance(first, gs.Constant) and op != "Pow":
        first, second = second, first
    return (first, second) if isinstance(second, gs.Constant) else (None, None)


def _read(tensor: gs.Tensor | None, op: str) -> gs.Tensor | None:
    """What the `op` that makes `tensor` reads."""
    node = _maker(tensor)
    return node.inputs[0] if node is not None and node.op == op else None


def _maker(tensor: gs.Tensor | None) -> gs.Node | None:
    return tensor.inputs[0] if isinstance(tensor, gs.Variable) and tensor.inputs else None
