import numpy as np

from reptrt.engines.surgery.dialects.quantize_grid_weights import QuantizeGridWeights

TEXT = """net (float[1,4,8,8] x) => (float[1,3,8,8] y) {
    q = QuantizeLinear(x, s, z)
    d = DequantizeLinear(q, s, z)
    y = Conv(d, w)
}"""
CODES = np.random.default_rng(0).integers(-90, 91, (3, 4, 1, 1))
STEPS = np.array([0.013, 0.5, 1e-4]).reshape(3, 1, 1, 1)


def test_a_folded_weight_gets_its_codes_and_scales_back(operate):
    weight = (CODES * STEPS).astype(np.float32)
    weight[1] = 0  # a dead channel
    operated = operate(QuantizeGridWeights(), TEXT, s=np.float32(0.1), z=np.int8(0), w=weight)
    assert operated.sites == 1
    before, after = operated.outputs()
    np.testing.assert_allclose(before, after, rtol=1e-5, atol=1e-7)


def test_a_float_weight_stays(operate):
    weight = np.random.default_rng(0).normal(size=(3, 4, 1, 1)).astype(np.float32)
    operated = operate(QuantizeGridWeights(), TEXT, s=np.float32(0.1), z=np.int8(0), w=weight)
    assert operated.sites == 0


def test_a_layer_that_reads_floats_keeps_float_weights(operate):
    text = "net (float[1,4,8,8] x) => (float[1,3,8,8] y) { y = Conv(x, w) }"
    operated = operate(QuantizeGridWeights(), text, w=(CODES * STEPS).astype(np.float32))
    assert operated.sites == 0
