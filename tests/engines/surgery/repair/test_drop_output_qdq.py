from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from reptrt.engines.surgery import run_passes
from reptrt.engines.surgery.repair.drop_output_qdq import DropOutputQdq

GRID = "<float s = {0.5}, int8 z = {0}>"


def test_trailing_pair_is_dropped_and_the_output_keeps_its_name(operate):
    done = operate(
        DropOutputQdq(),
        f"""head (float[1,4] x) => (float[1,4] y) {GRID} {{
            r = Relu(x)
            q = QuantizeLinear(r, s, z)
            y = DequantizeLinear(q, s, z)
        }}""",
    )
    assert (done.sites, done.ops) == (1, ["Relu"])
    assert done.graph.outputs[0].name == "y"
    before, after = done.outputs({"x": np.array([[-1, 0.1, 0.6, 9]], np.float32)})
    assert before.tolist() == [[0, 0, 0.5, 9]]
    np.testing.assert_array_equal(after, np.array([[0, 0.1, 0.6, 9]], np.float32))


def test_an_output_that_the_network_reads_on_stays_quantized_inside(operate):
    done = operate(
        DropOutputQdq(),
        f"""head (float[4] x) => (float[4] y, float[4] n) {GRID} {{
            r = Relu(x)
            q = QuantizeLinear(r, s, z)
            y = DequantizeLinear(q, s, z)
            n = Neg(y)
        }}""",
    )
    assert done.ops == ["Relu", "QuantizeLinear", "DequantizeLinear", "Neg"]
    assert [output.name for output in done.graph.outputs] == ["y", "n"]
    assert done.graph.outputs[0].inputs[0].op == "Relu"
    assert done.node("Neg").i().op == "DequantizeLinear"


def test_the_pair_is_found_above_casts_and_reshapes(operate):
    done = operate(
        DropOutputQdq(),
        f"""head (float[1,4] x) => (float16[4] y) {GRID} {{
            r = Relu(x)
            q = QuantizeLinear(r, s, z)
            d = DequantizeLinear(q, s, z)
            f = Reshape(d, shape)
            y = Cast<to=10>(f)
        }}""",
        shape=np.array([4]),
    )
    assert done.ops == ["Relu", "Reshape", "Cast"]


def test_pairs_above_pairs_are_dropped_too(operate):
    done = operate(
        DropOutputQdq(),
        f"""head (float[4] x) => (float[4] y) {GRID} {{
            r = Neg(x)
            q = QuantizeLinear(r, s, z)
            d = DequantizeLinear(q, s, z)
            i = Identity(d)
            p = QuantizeLinear(i, s, z)
            e = DequantizeLinear(p, s, z)
            y = Identity(e)
        }}""",
    )
    assert (done.sites, done.ops) == (2, ["Neg", "Identity", "Identity"])


def test_the_new_output_has_type_and_shape_without_shape_inference(parse):
    graph = gs.import_onnx(
        parse(
            f"""head (float[1,4] x) => (float[1,4] y) {GRID} {{
                r = Relu(x)
                q = QuantizeLinear(r, s, z)
                y = DequantizeLinear(q, s, z)
            }}"""
        )
    )
    run_passes(graph, [DropOutputQdq()])
    assert (graph.outputs[0].dtype, graph.outputs[0].shape) == (np.float32, [1, 4])


@pytest.mark.parametrize(
    "body",
    [
        "q = QuantizeLinear(x, s, z)  y = DequantizeLinear(q, s, z)",
        "q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)  y = Relu(d)",
    ],
    ids=["of a graph input", "in the middle"],
)
def test_other_pairs_are_left_alone(body, operate):
    done = operate(DropOutputQdq(), f"g (float[4] x) => (float[4] y) {GRID} {{ {body} }}")
    assert done.sites == 0
    np.testing.assert_array_equal(*done.outputs())


def test_a_pair_after_another_graph_output_is_left_alone(operate):
    done = operate(
        DropOutputQdq(),
        f"""g (float[4] x) => (float[4] y, float[4] r) {GRID} {{
            r = Relu(x)
            q = QuantizeLinear(r, s, z)
            y = DequantizeLinear(q, s, z)
        }}""",
    )
    assert done.sites == 0


def test_weights_that_are_graph_outputs_are_left_alone(operate):
    done = operate(
        DropOutputQdq(),
        f"g (float[2] x) => (float[2] y) {GRID} {{ y = DequantizeLinear(w, s, z) }}",
        w=np.array([1, 2], np.int8),
    )
    assert done.sites == 0
