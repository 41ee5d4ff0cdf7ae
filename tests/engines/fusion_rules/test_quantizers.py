from __future__ import annotations

from tests.engines.fusion_rules.graphs import layers

CONV = "<pads=[1,1,1,1]>"
READ = "q = Q(x)\np = DQ(q)\nu = DQW(w3x32x32)\n"
FIRST = "Reformat: Float -> Int8"


def test_a_convolution_writes_int8_into_the_q_behind_it_and_else_float() -> None:
    body = f"""{READ}a = Conv{CONV}(p, u)
        r = Relu(a)
        q1 = Q2(r)
        p1 = DQ2(q1)
        v = DQW(w3x32x32)
        y = Conv{CONV}(p1, v)"""
    assert layers(body) == [
        FIRST,
        "CaskConvolution: Int8 -> Int8",
        "CaskConvolution: Int8 -> Float",
    ]


def test_a_quantized_skip_lets_the_sum_leave_in_int8() -> None:
    body = f"""{READ}a = Conv{CONV}(p, u)
        c = Add(a, p)
        r = Relu(c)
        q1 = Q2(r)
        p1 = DQ2(q1)
        v = DQW(w3x32x32)
        y = Conv{CONV}(p1, v)"""
    assert layers(body)[1] == "CaskConvolution: Int8 Int8 -> Int8"


def test_a_float_skip_keeps_the_sum_and_its_q_apart() -> None:
    body = f"""{READ}h = Sigmoid(x)
        a = Conv{CONV}(p, u)
        c = Add(a, h)
        q1 = Q2(c)
        p1 = DQ2(q1)
        v = DQW(w3x32x32)
        y = Conv{CONV}(p1, v)"""
    assert layers(body).count("CaskConvolution: Int8 Float -> Float") == 1
    assert layers(body).count(FIRST) == 2


def test_a_pair_on_the_branch_keeps_the_add_from_the_convolution() -> None:
    body = f"""{READ}a = Conv{CONV}(p, u)
        q1 = Q2(a)
        p1 = DQ2(q1)
        c = Add(p1, p)
        q2 = Q(c)
        y = DQ(q2)"""
    assert layers(body)[1:3] == ["CaskConvolution: Int8 -> Int8", "PointWise: Int8 Int8 -> Int8"]


def test_q_moves_in_front_of_a_max_pool() -> None:
    body = f"""{READ}a = Conv{CONV}(p, u)
        m = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(a)
        q1 = Q2(m)
        p1 = DQ2(q1)
        v = DQW(w3x32x32)
        y = Conv{CONV}(p1, v)"""
    assert layers(body) == [
        FIRST,
        "CaskConvolution: Int8 -> Int8",
        "CudaPooling: Int8 -> Int8",
        "CaskConvolution: Int8 -> Float",
    ]


def test_q_stays_behind_a_max_pool_that_a_float_layer_reads_too() -> None:
    body = f"""{READ}a = Conv{CONV}(p, u)
        m = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(a)
        q1 = Q2(m)
        p1 = DQ2(q1)
        v = DQW(w3x32x32)
        b = Conv{CONV}(p1, v)
        y = Add(b, m)"""
    assert "CudaPooling: Float -> Float" in layers(body)


def test_a_dq_moves_behind_a_nearest_resize_and_not_behind_a_linear_one() -> None:
    body = """q = Q(x)
        p = DQ(q)
        b = Resize<mode="MODE">(p, , sizes)
        u = DQW(w1x32x32)
        y = Conv(b, u)"""
    found = {
        mode: layers(
            "sizes = Constant<value_floats=[1.0,1.0,2.0,2.0]>()\n" + body.replace("MODE", mode),
            result="float[1,32,16,16] y",
        )
        for mode in ("nearest", "linear")
    }
    assert "Resize: Int8 -> Int8" in found["nearest"]
    assert "Resize: Float -> Float" in found["linear"]


def test_the_q_behind_a_concat_is_cloned_and_the_concat_disappears() -> None:
    body = f"""{READ}v = DQW(w3x32x32)
        a = Conv{CONV}(p, u)
        b = Conv{CONV}(p, v)
        c = Concat<axis=1>(a, b)
        q1 = Q2(c)
        p1 = DQ2(q1)
        t = DQW(w3x64x32)
        y = Conv{CONV}(p1, t)"""
    assert layers(body) == [
        FIRST,
        "CaskConvolution: Int8 -> Int8",
        "CaskConvolution: Int8 -> Int8",
        "CaskConvolution: Int8 -> Float",
    ]


def test_other_scales_are_requantized_by_a_layer_of_their_own() -> None:
    body = f"""{READ}r = MaxPool<kernel_shape=[1,1]>(p)
        q1 = Q2(r)
        p1 = DQ2(q1)
        y = Conv{CONV}(p1, u)"""
    assert "Scale: Int8 -> Int8" in layers(body)


def test_a_transposed_convolution_takes_no_q() -> None:
    body = """q = Q(x)
        p = DQ(q)
        u = DQW(w2x32x32)
        a = ConvTranspose<strides=[2,2]>(p, u)
        q1 = Q2(a)
        y = DQ2(q1)"""
    found = layers(body, result="float[1,32,16,16] y")
    assert found[1:3] == ["CaskDeconvolution: Int8 -> Float", "Reformat: Float -> Int8"]


def test_an_average_pool_is_int8_between_two_pairs_only() -> None:
    both = "q = Q(x)\np = DQ(q)\na = GlobalAveragePool(p)\nq1 = Q2(a)\ny = DQ2(q1)"
    before = "q = Q(x)\np = DQ(q)\ny = GlobalAveragePool(p)"
    assert "CaskPooling: Int8 -> Int8" in layers(both, result="float[1,32,1,1] y")
    assert "CaskPooling: Float -> Float" in layers(before, result="float[1,32,1,1] y")


def test_a_depthwise_convolution_is_int8_and_its_silu_apart() -> None:
    body = f"""q = Q(x)
        p = DQ(q)
        u = DQW(d3x32)
        a = Conv<pads=[1,1,1,1], group=32>(p, u)
        b = Sigmoid(a)
        c = Mul(a, b)
        q1 = Q2(c)
        p1 = DQ2(q1)
        v = DQW(w3x32x32)
        y = Conv{CONV}(p1, v)"""
    assert layers(body)[1:3] == [
        "CudaDepthwiseConvolution: Int8 -> Float",
        "PointWise: Float -> Int8",
    ]


def test_a_convolution_with_one_quantized_side_runs_in_float() -> None:
    activation = f"q = Q(x)\np = DQ(q)\ny = Conv{CONV}(p, w3x32x32)"
    weight = f"u = DQW(w3x32x32)\ny = Conv{CONV}(x, u)"
    assert "Reformat: Int8 -> Float" in layers(activation)
    assert "Reformat: Float -> Int8" not in layers(weight)


def test_a_scale_in_fp32_on_fp16_data_is_read_as_tensorrt_reads_it() -> None:
    body = "a = Q(x)\nb = DQ(a)\ny = Relu(b)"
    found = layers(body, source="float16[1,32,8,8] x")
    assert found[:2] == ["Reformat: Half -> Int8", "PointWise: Int8 -> Float"]
