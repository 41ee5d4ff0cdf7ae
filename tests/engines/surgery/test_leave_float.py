from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from reptrt.engines.surgery.base import run_passes
from reptrt.engines.surgery.leave_float import LeaveFloat

MODEL = """
    <ir_version: 9, opset_import: ["": 19]>
    residual (float[1,4,6,6] x) => (float[1,4,6,6] y)
    <float s = {0.05}, int8 z = {0}, float[4] steps = {0.5, 0.25, 0.125, 1.0}, int8[4] zeros = {0, 0, 0, 0}> {
        q1 = QuantizeLinear(x, s, z)
        d1 = DequantizeLinear(q1, s, z)
        w1 = DequantizeLinear <axis = 0> (codes, steps, zeros)
        [first] a = Conv(d1, w1)
        r = Relu(a)
        q2 = QuantizeLinear(r, s, z)
        d2 = DequantizeLinear(q2, s, z)
        w2 = DequantizeLinear <axis = 0> (codes, steps, zeros)
        [second] b = Conv(d2, w2)
        y = Add(b, d2)
    }"""


def left_float(*layers: str) -> tuple[gs.Graph, int]:
    model = onnx.parser.parse_model(MODEL)
    codes = np.random.default_rng(0).integers(-5, 6, (4, 4, 1, 1)).astype(np.int8)
    model.graph.initializer.append(onnx.numpy_helper.from_array(codes, "codes"))
    graph = gs.import_onnx(onnx.shape_inference.infer_shapes(model))
    changed = run_passes(graph, [LeaveFloat(layers)])["LeaveFloat"]
    onnx.checker.check_model(gs.export_onnx(graph), full_check=True)
    return graph, changed


def ops(graph: gs.Graph) -> list[str]:
    return [node.op for node in graph.nodes]


def test_a_layer_loses_the_pairs_on_both_of_its_sides() -> None:
    graph, changed = left_float("first")
    assert changed == 2
    conv = next(node for node in graph.nodes if node.name == "first")
    assert conv.inputs[0] is graph.inputs[0]
    assert conv.inputs[1].values.dtype == np.float32
    assert ops(graph).count("QuantizeLinear") == 1


def test_a_weight_keeps_the_values_of_its_grid() -> None:
    graph, _ = left_float("first")
    conv = next(node for node in graph.nodes if node.name == "first")
    codes = np.random.default_rng(0).integers(-5, 6, (4, 4, 1, 1))
    steps = np.array([0.5, 0.25, 0.125, 1.0]).reshape(4, 1, 1, 1)
    np.testing.assert_array_equal(conv.inputs[1].values, (codes * steps).astype(np.float32))


def test_a_pair_goes_when_neither_its_layer_nor_the_sum_behind_it_is_int8() -> None:
    graph, changed = left_float("second")
    assert changed == 2
    assert ops(graph) == ["QuantizeLinear", "DequantizeLinear", "DequantizeLinear", "Conv", "Relu",
                          "Conv", "Add"]  # fmt: skip
    add = graph.nodes[-1]
    assert add.inputs[1].inputs[0].op == "Relu"


def test_nothing_is_left_of_q_dq_when_every_layer_is_float() -> None:
    graph, changed = left_float("first", "second")
    assert changed == 4
    assert ops(graph) == ["Conv", "Relu", "Conv", "Add"]


def test_other_layers_are_left_alone() -> None:
    graph, changed = left_float("third")
    assert changed == 0
    assert ops(graph).count("DequantizeLinear") == 4


def test_a_transposed_weight_keeps_its_transpose() -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 9, opset_import: ["": 19]>
        linear (float[2,3] x) => (float[2,4] y)
        <float s = {0.5}, int8 z = {0}, float step = {0.25}, int8[4,3] codes = {1,2,3,4,5,6,7,8,9,10,11,12}> {
            q = QuantizeLinear(x, s, z)
            d = DequantizeLinear(q, s, z)
            w = DequantizeLinear(codes, step, z)
            t = Transpose <perm = [1, 0]> (w)
            [layer] y = MatMul(d, t)
        }""")
    graph = gs.import_onnx(onnx.shape_inference.infer_shapes(model))
    run_passes(graph, [LeaveFloat({"layer"})])
    onnx.checker.check_model(gs.export_onnx(graph), full_check=True)
    assert ops(graph) == ["Transpose", "MatMul"]
    assert graph.nodes[0].inputs[0].values[3, 2] == 3.0


def pool_pairs(*layers: str, pools: bool) -> int:
    model = onnx.parser.parse_model("""
        <ir_version: 9, opset_import: ["": 19]>
        pooled (float[1,4,6,6] x) => (float[1,4,1,1] y)
        <float s = {0.05}, int8 z = {0}, float[4] steps = {0.5, 0.25, 0.125, 1.0}, int8[4] zeros = {0, 0, 0, 0}> {
            q1 = QuantizeLinear(x, s, z)
            d1 = DequantizeLinear(q1, s, z)
            a = GlobalAveragePool(d1)
            q2 = QuantizeLinear(a, s, z)
            d2 = DequantizeLinear(q2, s, z)
            w = DequantizeLinear <axis = 0> (codes, steps, zeros)
            [layer] y = Conv(d2, w)
        }""")
    codes = np.ones((4, 4, 1, 1), np.int8)
    model.graph.initializer.append(onnx.numpy_helper.from_array(codes, "codes"))
    graph = gs.import_onnx(onnx.shape_inference.infer_shapes(model))
    run_passes(graph, [LeaveFloat(layers, pools=pools)])
    return ops(graph).count("QuantizeLinear")


def test_an_average_pool_keeps_its_pair_where_an_int8_layer_reads_it_and_pools_may() -> None:
    assert pool_pairs(pools=True) == 2
    assert pool_pairs(pools=False) == 1
    assert pool_pairs("layer", pools=True) == 0
