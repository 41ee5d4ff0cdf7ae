"""For ONNX Runtime on a CPU: a Q/DQ pair behind what only moves or joins codes.

TensorRT carries integer codes through a MaxPool or a Concat by itself; ONNX Runtime keeps an operator
in integers only between a DequantizeLinear and a QuantizeLinear. The pair repeats the grid of what is
read, so no code changes.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from reptrt.engines.commuting import commutes
from reptrt.engines.surgery.base import Pass
from reptrt.engines.surgery.names import Names
from reptrt.engines.surgery.qdq import (
    DEQUANTIZE,
    QUANTIZE,
    input_at,
    producer,
    same_grid,
    scale_of,
    zero_point_of,
)
from reptrt.engines.surgery.rewire import is_any, replace_reads


class RequantizeSelections(Pass):
    """Follow every selecting operator that reads one grid alone by a pair on that grid."""

    def apply(self, graph: gs.Graph) -> int:
        """Insert in place, in graph order, so that chains of them are followed; a site is a pair."""
        names, inserted = Names(graph), 0
        for node in list(graph.nodes):
            grid = _grid_of(node)
            if grid is not None and not is_any(node.outputs[0], graph.outputs):
                _insert_pair(graph, names, node, grid)
                inserted += 1
        return inserted


def _grid_of(node: gs.Node) -> gs.Node | None:
    """A DequantizeLinear on the one grid that all of `node`'s values are on; None if there is none."""
    if node.op != "Concat" and not commutes(node):
        return None
    if len(node.outputs) != 1 or any(reader.op == QUANTIZE for reader in node.outputs[0].outputs):
        return None
    sources = [producer(part) for part in (node.inputs if node.op == "Concat" else node.inputs[:1])]
    first = sources[0]
    for source in sources:
        if source is None or first is None or source.op != DEQUANTIZE:
            return None
        if scale_of(source).size != 1 or not same_grid(first, source):
            return None
    return first if first is not None and input_at(first, 2) is not None else None


def _insert_pair(graph: gs.Graph, names: Names, node: gs.Node, grid: gs.Node) -> None:
    values, stem = node.outputs[0], node.outputs[0].name
    zero_point = zero_point_of(grid)
    codes = gs.Variable(names.fresh(f"{stem}_codes"), np.asarray(zero_point).dtype, values.shape)
    dequantized = gs.Variable(names.fresh(f"{stem}_dequantized"), values.dtype, values.shape)
    replace_reads(values, dequantized)
    for op, source, target in ((QUANTIZE, values, codes), (DEQUANTIZE, codes, dequantized)):
        pair = [names.constant(f"{stem}_scale", scale_of(grid)),
                names.constant(f"{stem}_zero_point", np.asarray(zero_point))]  # fmt: skip
        name = names.fresh(f"{stem}_{op}")
        graph.nodes.append(gs.Node(op, name, inputs=[source, *pair], outputs=[target]))
