"""Nodes of islands come back under names of their own."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from reptrt.models.onnx_import.islands import IslandNote
from reptrt.models.onnx_import.tail import Tail
from reptrt.models.onnx_import.values import run_onnx_feeds
from reptrt.pipeline.export.put_back import put_islands_back, put_tail_back


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


def test_an_output_of_the_tail_keeps_its_name_where_the_network_uses_it_inside() -> None:
    proto = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 19]> net (float[4] images) => (float[4] c)
        <float[4] m = {1, 2, 3, 4}> { cast = Mul(images, m) c = Neg(cast) }"""
    )
    tail = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 19]> tail (float[4] c) => (int64[1] cast, int64[1] m) {
        cast = ArgMax(c) m = ArgMin(c) }"""
    )
    model = tail.SerializeToString()
    note = IslandNote((), (), "", is_tail=True)
    put_tail_back(proto, Tail(model, ("c",), ("c",), ("cast", "m"), ("images",), note))
    onnx.checker.check_model(proto, full_check=True)
    found = run_onnx_feeds(proto, {"images": np.array([2, -1, 1, 3], np.float32)})
    assert {name: value.tolist() for name, value in found.items()} == {"cast": [1], "m": [3]}
