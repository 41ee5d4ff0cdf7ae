"""The last pass: drop what no output needs, and store equal constants once."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from reptrt.engines.surgery.base import Pass
from reptrt.engines.surgery.qdq import DEQUANTIZE
from reptrt.engines.surgery.rewire import is_any, replace_reads


class StripDeadNodes(Pass):
    """Remove unused nodes; make all readers of equal constants share one initializer."""

    def apply(self, graph: gs.Graph) -> int:
        """Strip in place; a site is a removed node or constant."""
        before = len(graph.nodes)
        graph.cleanup()
        return before - len(graph.nodes) + _share_constants(graph)


def _share_constants(graph: gs.Graph) -> int:
    first: dict[tuple[bool, str, tuple[int, ...], bytes], gs.Constant] = {}
    shared = 0
    for tensor in graph.tensors().values():
        if not isinstance(tensor, gs.Constant) or is_any(tensor, graph.outputs):
            continue
        values = tensor.values
        key = (_are_codes(tensor), str(values.dtype), values.shape, values.tobytes())
        original = first.setdefault(key, tensor)
        if original is not tensor:
            replace_reads(tensor, original)
            shared += 1
    return shared


def _are_codes(tensor: gs.Constant) -> bool:
    """Whether these are codes: TensorRT refuses codes that are somebody's zero point too."""
    return any(node.op == DEQUANTIZE and node.inputs[0] is tensor for node in tensor.outputs)
