"""Compute, once, what depends on constants only; quantized weights stay quantized."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from reptrt.engines.surgery.base import Pass


class FoldConstants(Pass):
    """Turn Constant nodes and constant sub-graphs into initializers.

    graphsurgeon never folds QuantizeLinear or DequantizeLinear, so int8 weights stay int8.
    Random and custom operators are kept: they are no constants, or ONNX Runtime cannot run them.
    """

    def apply(self, graph: gs.Graph) -> int:
        """Fold in place; a site is a node that became an initializer."""
        graph.cleanup().toposort()
        before = len(graph.nodes)
        graph.fold_constants(should_exclude_node=_is_not_foldable).cleanup()
        return before - len(graph.nodes)


def _is_not_foldable(node: gs.Node) -> bool:
    is_random = node.op in {"Bernoulli", "Multinomial"} or node.op.startswith("Random")
    return is_random or node.domain not in {None, "", "ai.onnx"}
