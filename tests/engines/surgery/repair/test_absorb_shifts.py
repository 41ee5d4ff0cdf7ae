from __future__ import annotations

import numpy as np
import pytest

from reptrt.engines.surgery.repair.absorb_shifts import AbsorbShifts
from reptrt.engines.surgery.repair.recentre_activations import RecentreActivations

PASSES = [RecentreActivations(), AbsorbShifts()]
CONV = """g (float[1,4,6,6] x) => (float[1,4,6,6] y) <float s = {0.02}, int8 z = {-100}> {
    a = Conv(x, w1, b1)
    q = QuantizeLinear(a, s, z)
    d = DequantizeLinear(q, s, z)
    BEFORE
    c = CODES
    y = BODY
}"""
WEIGHT = "DequantizeLinear<axis=0>(w, ws, wz)"


@pytest.fixture
def weights():
    rng = np.random.default_rng(0)
    return {
        "w1": rng.normal(size=(4, 4, 1, 1)),
        "b1": rng.normal(size=4),
        "b": rng.normal(size=4),
        "ws": rng.uniform(0.005, 0.02, 4),
        "wz": np.zeros(4, np.int8),
    }


def codes(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).integers(-127, 128, shape).astype(np.int8)


@pytest.fixture
def absorb(parse, operate_model, weights):
    def absorbed(body: str, shape: tuple[int, ...], before: str = ""):
        text = CONV.replace("CODES", WEIGHT).replace("BODY", body).replace("BEFORE", before)
        used = {k: v for k, v in {**weights, "w": codes(*shape)}.items() if k in text}
        return operate_model(parse(text, **used), PASSES)

    return absorbed


def largest_difference(done) -> float:
    return float(np.abs(np.subtract(*done.outputs())).max())


@pytest.mark.parametrize("bias", ["", ", b"])
def test_an_unpadded_convolution_takes_the_shift_into_its_bias(bias, absorb):
    done = absorb(f"Conv(d, c{bias})", (4, 4, 1, 1))
    expected = ["Conv", "Conv", "DequantizeLinear", "DequantizeLinear", "QuantizeLinear"]
    assert sorted(done.ops) == expected
    assert largest_difference(done) < 1e-4


def test_a_padded_convolution_reads_what_was_padded_with_the_code_of_0(absorb):
    done = absorb("Conv<pads=[1,1,1,1]>(d, c, b)", (4, 4, 3, 3))
    assert sorted(done.ops) == sorted(
        ["Conv", "Pad", "QuantizeLinear", "DequantizeLinear", "DequantizeLinear", "Conv"]
    )
    assert done.graph.nodes[-1].attrs["pads"] == [0, 0, 0, 0]
    assert largest_difference(done) < 1e-4


def test_uneven_pads_stay_where_they_were(absorb):
    done = absorb("Conv<pads=[2,0,0,2]>(d, c, b)", (4, 4, 3, 3))
    assert "Pad" in done.ops
    assert largest_difference(done) < 1e-4


def test_convolutions_that_pad_alike_share_what_is_padded_and_others_do_not(absorb):
    before = """c1 = DequantizeLinear<axis=0>(w, ws, wz)
    e = Conv<pads=[1,1,1,1]>(d, c1)
    f = Conv<pads=[2,2,2,2], dilations=[2,2]>(d, c1)
    h = Add(e, f)
    i = Conv<pads=[1,1,1,1]>(d, c1, b)"""
    done = absorb("Sum(h, i)", (4, 4, 3, 3), before=before)
    assert done.ops.count("Pad") == 2
    assert largest_difference(done) < 1e-4


def test_grouped_convolutions_sum_their_own_weights(absorb):
    done = absorb("Conv<group=4>(d, c, b)", (4, 1, 1, 1))
    assert "Sub" not in done.ops
    assert largest_difference(done) < 1e-4


def test_max_pool_is_crossed_and_the_padding_behind_it_gets_a_pair(absorb):
    pool = "m = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(d)"
    done = absorb("Conv<pads=[1,1,1,1]>(m, c, b)", (4, 4, 3, 3), before=pool)
    pad = done.node("Pad")
    assert (pad.i().op, pad.o().op) == ("MaxPool", "QuantizeLinear")
    assert "Sub" not in done.ops
    assert largest_difference(done) < 1e-4


def test_automatic_padding_is_left_to_the_convolution(absorb):
    done = absorb('Conv<auto_pad="SAME_UPPER">(d, c, b)', (4, 4, 3, 3))
    assert "Sub" in done.ops
    assert largest_difference(done) < 1e-4


def test_a_reader_that_takes_no_shift_reads_the_subtracted_values(absorb):
    done = absorb("Sigmoid(d)", (4, 4, 1, 1))
    assert done.ops == ["Conv", "QuantizeLinear", "DequantizeLinear", "Sub", "Sigmoid"]
    assert largest_difference(done) < 1e-5


def test_before_pad_took_inputs_a_padded_convolution_reads_the_subtracted_values(
    operate_model, parse
):
    text = """g (float[1,4,6,6] x) => (float[1,4,6,6] y) <float s = {0.02}, uint8 z = {9}> {
        q = QuantizeLinear(x, s, z)
        d = DequantizeLinear(q, s, z)
        y = Conv<pads=[1,1,1,1]>(d, w)
    }"""
    w = np.random.default_rng(2).normal(size=(4, 4, 3, 3))
    done = operate_model(parse(text, opset=10, w=w), PASSES)
    assert done.ops[-2:] == ["Sub", "Conv"]
    assert largest_difference(done) < 1e-4


def test_matrix_products_take_it(operate_model, parse):
    text = """g (float[2,4] x) => (float[2,3] y) <float s = {0.02}, uint8 z = {3}> {
        a = Add(x, x)
        q = QuantizeLinear(a, s, z)
        d = DequantizeLinear(q, s, z)
        c = DequantizeLinear<axis=1>(w, ws, wz)
        y = PRODUCT
    }"""
    for product in ("MatMul(d, c)", "Gemm(d, c)", "Gemm(d, c, b)"):
        constants = {"w": codes(4, 3), "ws": [0.01, 0.02, 0.03], "wz": np.zeros(3, np.int8)}
        if "b)" in product:
            constants["b"] = [1.0, 2.0, 3.0]
        done = operate_model(parse(text.replace("PRODUCT", product), **constants), PASSES)
        behind = done.node("DequantizeLinear").outputs[0].outputs
        assert [node.op for node in behind] in (["MatMul"], ["Gemm"])
        assert largest_difference(done) < 1e-4


def test_two_pairs_of_one_grid_with_a_pool_between_cancel(operate_model, parse):
    text = """g (float[1,4,6,6] x) => (float[1,4,6,6] y) <float s = {0.02}, uint8 z = {9}> {
        q = QuantizeLinear(x, s, z)
        d = DequantizeLinear(q, s, z)
        m = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(d)
        r = QuantizeLinear(m, s, z)
        e = DequantizeLinear(r, s, z)
        y = Sigmoid(e)
    }"""
    done = operate_model(parse(text), PASSES)
    assert [op for op in done.ops if op in {"Add", "Sub"}] == ["Add", "Sub"]
    pool = done.node("MaxPool")
    assert pool.o().op == "QuantizeLinear"
    assert largest_difference(done) < 0.0201
