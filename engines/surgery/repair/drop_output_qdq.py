"""Graph outputs are read in floating point, so a trailing Q/DQ pair only loses precision."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from reptrt.engines.commuting import commutes
from reptrt.engines.surgery.base import Pass, SurgeryError
from reptrt.engines.surgery.names import Names
from reptrt.engines.surgery.qdq import DEQUANTIZE, QUANTIZE, producer
from reptrt.engines.surgery.rewire import is_any


class DropOutputQdq(Pass):
    """Read graph outputs before their last Q/DQ pair, also through casts and reshapes.

    A pair stays where it quantizes a graph input or another graph output.
    """

    def apply(self, graph: gs.Graph) -> int:
        """Rewire in place; a site is a pair."""
        dropped, names = 0, Names(graph)
        for index in range(len(graph.outputs)):
            while dequantize := _trailing_dequantize(graph, graph.outputs[index]):
                quantize, values = dequantize.i(), dequantize.outputs[0]
                source = quantize.inputs[0]
                if values is graph.outputs[index]:
                    _rename(graph, index, source, names)
                else:
                    values.outputs[0].inputs[0] = source
                readers = [*quantize.outputs[0].outputs, *values.outputs]
                if all(reader is dequantize for reader in readers):
                    quantize.inputs.clear()  # it no longer counts as a reader of `source`
                dropped += 1
        return dropped

    def ensures(self, graph: gs.Graph) -> None:
        """No output ends in a pair that could have been dropped."""
        trailing = [o.name for o in graph.outputs if _trailing_dequantize(graph, o) is not None]
        if trailing:
            raise SurgeryError(f"Outputs still end in {DEQUANTIZE}: {trailing}")


def _rename(graph: gs.Graph, index: int, source: gs.Tensor, names: Names) -> None:
    """Make `source` the graph output `index`, under the name that callers know."""
    output = graph.outputs[index]
    name = output.name
    output.name = names.fresh(f"{name}_dequantized")
    source.name, source.dtype, source.shape = name, output.dtype, output.shape
    graph.outputs[index] = source


def _trailing_dequantize(graph: gs.Graph, output: gs.Tensor) -> gs.Node | None:
    """The DequantizeLinear of a pair that only `output` needs, or None."""
    tensor = output
    while True:
        node = producer(tensor)
        if node is None:
            return None
        if node.op == DEQUANTIZE:
            break
        tensor = node.inputs[0] if node.inputs else None
        is_moving = node.op == "Cast" or commutes(node)
        if not is_moving or tensor is None or len(tensor.outputs) != 1:
            return None
        if is_any(tensor, graph.outputs):
            return None
    quantize = producer(node.inputs[0])
    if quantize is None or quantize.op != QUANTIZE:
        return None
    source = quantize.inputs[0]
    is_free = bool(source.inputs) and not is_any(source, graph.outputs)
    return node if is_free or tensor is not output else None
