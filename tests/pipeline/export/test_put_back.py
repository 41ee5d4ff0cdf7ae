"""Nodes of islands come back under names of their own."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from reptrt.models.onnx_import.values import run_onnx_feeds
from reptrt.pipeline.export.put_back import put_islands_back


def test_islands_that_use_the_same_names_inside_do_not_meet() -> None:
    piece = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 19]> island (float[2] a) => (float[2] b) {
        m = Neg(a) b = Exp(m) }"""
    )
    model = numpy_helper.from_array(np.frombuffer(piece.SerializeToString(), np.uint8), "model")
    islands = [
        helper.make_node("Island", [read, "model"], [made], domain="reptrt")
        for read, made in (("x", "u"), ("u", "y"))
    ]
    sides = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2]) for name in ("x", "y")
    ]
    graph = helper.make_graph(islands, "net", sides[:1], sides[1:], [model])
    domains = [helper.make_opsetid("", 19), helper.make_opsetid("reptrt", 1)]
    proto = helper.make_model(graph, opset_imports=domains, ir_version=10)
    put_islands_back(proto)
    onnx.checker.check_model(proto, full_check=True)
    x = np.array([0.5, -1.0], np.float32)
    np.testing.assert_allclose(run_onnx_feeds(proto, {"x": x})["y"], np.exp(-np.exp(-x)), rtol=1e-6)
