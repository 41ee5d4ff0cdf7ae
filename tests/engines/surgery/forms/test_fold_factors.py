from __future__ import annotations

import numpy as np
import pytest

from reptrt.engines.surgery.forms.fold_factors import FoldFactors

TEXT = """g (float16[1,2,4,4] x) => (float16[1,READS,4,4] y)
<float s = {0.05}, int8 z = {0}> {
    h = Cast<to=1>(x)
    q = QuantizeLinear(h, s, z)
    e = DequantizeLinear(q, s, z)
    d = Cast<to=10>(e)
    v = DequantizeLinear(w, t, z)
    a = Conv(d, v)
    r = Relu(a)
    m = Mul(r, f)
    y = Conv<group=GROUPS>(m, k)
}"""
FACTORS = np.array([0.3, 0.07, 1.9, 0.5], np.float16).reshape(1, 4, 1, 1)
CODES = np.random.default_rng(0).integers(-9, 10, (4, 2, 1, 1)).astype(np.int8)
SHARED = {"w": CODES, "f": FACTORS, "t": np.float16(0.125)}


def text(groups: int, reads: int) -> str:
    return TEXT.replace("GROUPS", str(groups)).replace("READS", str(reads))


def kernel(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=shape).astype(np.float16)


@pytest.mark.parametrize(("groups", "reads"), [(4, 4), (4, 8), (2, 6), (1, 3)])
def test_a_float_convolution_takes_the_factors_of_its_input_channels(groups, reads, operate):
    done = operate(FoldFactors(), text(groups, reads), **SHARED, k=kernel(reads, 4 // groups, 1, 1))
    assert (done.sites, done.ops[-3:]) == (1, ["Conv", "Relu", "Conv"])
    np.testing.assert_allclose(*done.outputs(), rtol=2**-8, atol=2**-8)


def test_each_channel_of_a_depthwise_weight_is_multiplied_by_its_own_factor(operate):
    done = operate(FoldFactors(), text(4, 4), **SHARED, k=np.ones((4, 1, 1, 1), np.float16))
    folded = done.graph.outputs[0].inputs[0].inputs[1].values
    np.testing.assert_array_equal(folded.ravel(), FACTORS.ravel())


def test_other_readers_keep_the_factors(operate):
    both = (
        text(4, 4).replace("y = Conv", "c = Conv").replace("(m, k)\n", "(m, k)\n y = Add(c, m)\n")
    )
    done = operate(FoldFactors(), both, **SHARED, k=kernel(4, 1, 1, 1))
    assert (done.sites, "Mul" in done.ops) == (1, True)
    np.testing.assert_allclose(*done.outputs(), rtol=2**-8, atol=2**-8)


def test_a_fold_that_fp16_cannot_hold_is_left_out(operate):
    tiny = FACTORS * np.array([1e-4, 1, 1, 1], np.float16).reshape(1, 4, 1, 1)
    small = kernel(4, 1, 1, 1) * np.float16(0.1)
    assert operate(FoldFactors(), text(4, 4), **{**SHARED, "f": tiny}, k=small).sites == 0


@pytest.mark.parametrize(
    ("old", "new"), [("Relu(a)", "HardSwish(a)"), ("Relu(a)", "Add(a, f)"), ("(r, f)", "(r, t)")]
)
def test_what_does_not_commute_with_factors_per_channel_stays(old, new, operate):
    done = operate(FoldFactors(), text(4, 4).replace(old, new), **SHARED, k=kernel(4, 1, 1, 1))
    assert done.sites == 0
