from __future__ import annotations

import pytest

from tests.engines.fusion_rules.graphs import layers

CONV = "<pads=[1,1,1,1]>"
HALF = {"source": "float16[1,32,8,8] x", "result": "float16[1,32,8,8] y"}
IN, OUT = "Reformat: Half -> Half", "Reformat: Half -> Half"  # to nhwc, and back


def test_convolution_bias_and_relu_are_one_layer() -> None:
    body = f"a = Conv{CONV}(x, half_w3x32x32)\ny = Relu(a)"
    assert layers(body, **HALF) == [IN, "CaskConvolution: Half -> Half", OUT]


def test_the_later_of_two_convolutions_takes_the_add_and_its_relu() -> None:
    body = f"""a = Conv{CONV}(x, half_w3x32x32)
        b = Conv<pads=[0,0,0,0]>(x, half_w1x32x32)
        c = Add(a, b)
        y = Relu(c)"""
    assert layers(body, **HALF) == [
        IN,
        "CaskConvolution: Half -> Half",
        "CaskConvolution: Half Half -> Half",
        OUT,
    ]


def test_an_activation_before_the_add_keeps_the_add_apart() -> None:
    body = f"a = Conv{CONV}(x, half_w3x32x32)\nb = Relu(a)\ny = Add(b, x)"
    assert "PointWise: Half Half -> Half" in layers(body, **HALF)


def test_an_add_that_broadcasts_stays_apart() -> None:
    body = f"a = Conv{CONV}(x, half_w3x32x32)\nb = GlobalAveragePool(x)\ny = Add(a, b)"
    assert "PointWise: Half Half -> Half" in layers(body, **HALF)


@pytest.mark.parametrize(("gpu", "count"), [((7, 5), 1), ((8, 0), 0)])
def test_silu_joins_a_half_convolution_from_ampere_on(gpu: tuple[int, int], count: int) -> None:
    body = f"a = Conv{CONV}(x, half_w3x32x32)\nb = Sigmoid(a)\ny = Mul(a, b)"
    found = layers(body, **HALF, gpu=gpu)
    assert found.count("PointWise: Half -> Half") == count


def test_silu_stays_apart_in_fp32() -> None:
    body = f"a = Conv{CONV}(x, w3x32x32)\nb = Sigmoid(a)\ny = Mul(a, b)"
    assert "PointWise: Float -> Float" in layers(body)


def test_silu_with_an_add_in_it_stays_apart() -> None:
    body = f"a = Conv{CONV}(x, half_w3x32x32)\nb = Sigmoid(a)\nc = Mul(a, b)\ny = Add(c, x)"
    assert "PointWise: Half Half -> Half" in layers(body, **HALF)


def test_twins_are_one_layer_of_both_products() -> None:
    body = f"""a = Conv{CONV}(x, half_w3x32x32)
        b = Conv{CONV}(x, half_w3x32x64)
        c = Relu(a)
        d = Relu(b)
        e = Conv{CONV}(d, half_w3x64x32)
        y = Add(c, e)"""
    assert layers(body, **HALF) == [
        IN,
        "CaskConvolution: Half -> Half Half",
        "CaskConvolution: Half Half -> Half",
        OUT,
    ]


def test_quantized_twins_stay_two() -> None:
    body = f"""q = Q(x)
        p = DQ(q)
        u = DQW(w3x32x32)
        v = DQW(w3x32x32)
        a = Conv{CONV}(p, u)
        b = Conv{CONV}(p, v)
        y = Mul(a, b)"""
    assert layers(body).count("CaskConvolution: Int8 -> Float") == 2


def test_a_scale_per_channel_folds_into_a_float_convolution() -> None:
    body = f"a = Conv{CONV}(x, w3x32x32)\nb = Mul(a, w1x32x1)\ny = Relu(b)"
    assert [kind for kind in layers(body) if "PointWise" in kind] == []
