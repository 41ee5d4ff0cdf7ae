from __future__ import annotations

import numpy as np
import pytest

from reptrt.engines.surgery.repair.fuse_pad_into_conv import FusePadIntoConv

WEIGHT = np.random.default_rng(0).normal(size=(2, 2, 3, 3))
PADS = np.array([0, 0, 1, 2, 0, 0, 3, 0])
HEAD = "g (float[1,2,6,6] x) => (float[1,2,h,w] y) <float s = {0.05}, int8 z = {0}, uint8 u = {9}>"
CONV = "y = Conv<pads=[1,0,0,1]>(d, weight)"


def test_a_zero_pad_moves_into_the_convolution(operate):
    done = operate(
        FusePadIntoConv(), f"{HEAD} {{ d = Pad(x, pads)  {CONV} }}", weight=WEIGHT, pads=PADS
    )
    assert (done.sites, done.ops) == (1, ["Conv"])
    assert done.node("Conv").attrs["pads"] == [2, 2, 3, 1]
    np.testing.assert_allclose(*done.outputs(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("zero_point", ["z", "u"])
def test_it_moves_over_a_quantized_pair_and_a_clip_around_zero(zero_point, operate):
    done = operate(
        FusePadIntoConv(),
        f"""{HEAD} <float low = {{-1.0}}, float high = {{2.0}}> {{
            p = Pad(x, pads, zero)
            c = Clip(p, low, high)
            q = QuantizeLinear(c, s, {zero_point})
            d = DequantizeLinear(q, s, {zero_point})
            {CONV}
        }}""".replace("> <", ", "),
        weight=WEIGHT,
        pads=PADS,
        zero=np.float32(0),
    )
    assert (done.sites, "Pad" in done.ops) == (1, False)
    np.testing.assert_allclose(*done.outputs(), rtol=1e-5, atol=1e-6)


def test_pads_given_by_axes_are_understood(operate):
    done = operate(
        FusePadIntoConv(),
        f"{HEAD} {{ d = Pad(x, pads, , axes)  {CONV} }}",
        weight=WEIGHT,
        pads=np.array([1, 2]),
        axes=np.array([-1]),
    )
    assert done.node("Conv").attrs["pads"] == [1, 1, 0, 3]
    np.testing.assert_allclose(*done.outputs(), rtol=1e-5, atol=1e-6)


def test_all_convolutions_that_read_the_pad_get_its_zeros(operate):
    done = operate(
        FusePadIntoConv(),
        f"""{HEAD} {{
            d = Pad(x, pads)
            a = Conv<auto_pad="VALID">(d, weight)
            b = Conv(d, weight)
            y = Add(a, b)
        }}""",
        weight=WEIGHT,
        pads=PADS,
    )
    assert sorted(done.ops) == ["Add", "Conv", "Conv"]
    np.testing.assert_allclose(*done.outputs(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "body",
    [
        f"d = Pad(x, pads, s)  {CONV}",
        f'd = Pad<mode="reflect">(x, pads)  {CONV}',
        f"d = Pad(x, crop)  {CONV}",
        "d = Pad(x, channels)  e = Conv(d, wide)  y = Relu(e)",
        "d = Pad(x, pads)  a = Conv(d, weight)  b = ReduceMean(d)  y = Add(a, b)",
        'd = Pad(x, pads)  y = Conv<auto_pad="SAME_UPPER">(d, weight)',
        f"p = Pad(x, pads)  d = Clip(p, s)  {CONV}",
        f"p = Pad(x, pads)  d = Exp(p)  {CONV}",
    ],
    ids=["value", "reflect", "crop", "channels", "other reader", "auto_pad", "clip", "exp"],
)
def test_other_pads_are_left_alone(body, operate):
    done = operate(
        FusePadIntoConv(),
        f"{HEAD} {{ {body} }}",
        weight=WEIGHT,
        wide=np.ones((2, 3, 3, 3)),
        pads=PADS,
        crop=-(PADS > 2).astype(np.int64),
        channels=np.array([0, 1, 0, 0, 0, 0, 0, 0]),
    )
    assert (done.sites, "Pad" in done.ops) == (0, True)
