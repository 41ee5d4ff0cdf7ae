"""ONNX Runtime's own operators (its optimizer's FusedConv, BiasGelu, ...) by those of ONNX."""

from __future__ import annotations

import onnx
import onnx_graphsurgeon as gs

from reptrt.engines.foreign.contributed import is_contributed, write_contributed
from reptrt.engines.surgery.base import Pass


class WriteContributed(Pass):
    """No TensorRT has these operators; what they compute, `write_contributed` writes."""

    def apply(self, graph: gs.Graph) -> int:
        """Write in place; a site is an operator."""
        if not any(is_contributed(node.op, node.domain or "", graph.opset) for node in graph.nodes):
            return 0
        proto = gs.export_onnx(graph, do_type_check=False)
        written = write_contributed(proto)
        if written:
            made = gs.import_onnx(onnx.shape_inference.infer_shapes(proto, data_prop=True))
            graph.nodes, graph.inputs, graph.outputs = made.nodes, made.inputs, made.outputs
            graph.import_domains = made.import_domains
        return written
