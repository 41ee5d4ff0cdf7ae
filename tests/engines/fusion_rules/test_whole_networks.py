from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from reptrt.engines.fusion_rules import RULES, UnpredictableModelError, predict_kernels
from tests.engines.fusion_rules.graphs import layers, line, model

CONV = "<pads=[1,1,1,1]>"
HALF = {"source": "float16[1,32,8,8] x", "result": "float16[1,32,8,8] y"}
CLASSIFIER = """a = Conv<pads=[1,1,1,1]>(x, w3x3x32)
    b = GlobalAveragePool(a)
    c = Flatten(b)
    y = MatMul(c, m32x10)"""


def test_weak_typing_turns_all_but_the_ends_into_fp16() -> None:
    network = model(CLASSIFIER, "float[1,3,8,8] x", "float[1,10] y")
    kernels = predict_kernels(network, remainder="fp16")
    assert [line(kernel) for kernel in kernels] == [
        "Reformat: Float -> Half",
        "CaskConvolution: Half -> Half",
        "CaskPooling: Half -> Half",
        "CaskConvolution: Half -> Half",
        "NoOp: Half -> Half",  # to linear
        "NoOp: Half -> Half",  # to [N, 10]
        "Reformat: Half -> Float",
    ]


def test_the_classifier_is_a_convolution_of_one_point() -> None:
    network = model(CLASSIFIER, "float[N,3,8,8] x", "float[N,10] y")
    product = predict_kernels(network, batch=4)[-3]
    assert product.inputs[0].dims == (4, 32, 1, 1)
    assert product.outputs[0].dims == (4, 10, 1, 1)
    assert product.operations == 2 * 4 * 32 * 10


def test_layers_name_the_nodes_they_compute_and_reformats_none() -> None:
    network = model(CLASSIFIER, "float[1,3,8,8] x", "float[1,10] y")
    kernels = predict_kernels(network, remainder="fp16")
    named = [kernel.onnx_layers for kernel in kernels]
    assert named == [(), ("node_of_a",), ("node_of_b",), ("node_of_y",), (), (), ()]


def test_a_mean_over_height_and_width_is_a_pool() -> None:
    body = "a = ReduceMean(x, axes)\ny = Relu(a)"
    body = f"axes = Constant<value_ints=[2,3]>()\n{body}"
    assert layers(body, result="float[1,32,1,1] y")[0] == "CaskPooling: Float -> Float"


def test_parts_of_a_split_are_read_in_place_and_copied_into_a_concat() -> None:
    body = f"""a, b = Split<axis=1, num_outputs=2>(x)
        c = Conv{CONV}(b, half_w3x16x16)
        y = Concat<axis=1>(a, b, c)"""
    kernels = layers(body, source=HALF["source"], result="float16[1,48,8,8] y")
    assert kernels.count("Reformat: Half -> Half") == 4  # in, a copy, b copy, out
    assert len(kernels) == 5


def test_what_another_layer_reads_too_is_copied_into_a_concat() -> None:
    body = f"""a = Conv{CONV}(x, half_w3x32x32)
        b = Conv{CONV}(a, half_w3x32x32)
        c = Concat<axis=1>(a, b)
        y = Conv{CONV}(c, half_w3x64x32)"""
    names = [kernel.name for kernel in predict_kernels(model(body, **HALF))]
    assert [name for name in names if name.endswith("copy")] == ["a copy"]


ATTENTION = """k2 = Transpose<perm=[0,1,3,2]>(k)
    a = MatMul(q, k2)
    m = Mul(a, s)
    p = Softmax(m)
    y = MatMul(p, v)"""
HEADS = "TYPE[1,4,16,32] q, TYPE[1,4,16,32] k, TYPE[1,4,16,32] v"


@pytest.mark.parametrize(
    ("dtype", "gpu", "is_fused"),
    [("float16", (8, 0), True), ("float16", (7, 5), False), ("float", (8, 0), False)],
)
def test_attention_is_one_kernel_in_fp16_from_ampere_on(
    dtype: str, gpu: tuple[int, int], is_fused: bool
) -> None:
    found = layers(
        ATTENTION, source=HEADS.replace("TYPE", dtype), result=f"{dtype}[1,4,16,32] y", gpu=gpu
    )
    assert any(kind.startswith("_gemm_mha_v2") for kind in found) == is_fused


def test_pairs_inside_attention_give_int8_products_and_a_softmax() -> None:
    body = """k2 = Transpose<perm=[0,1,3,2]>(k)
        c1 = Q(q)
        c2 = Q(k2)
        q8 = DQ(c1)
        k8 = DQ(c2)
        a = MatMul(q8, k8)
        p = Softmax(a)
        c3 = Q2(p)
        c4 = Q(v)
        p8 = DQ2(c3)
        v8 = DQ(c4)
        y = MatMul(p8, v8)"""
    heads = HEADS.replace("TYPE", "float")
    found = layers(body, source=heads, result="float[1,4,16,32] y")
    assert found.count("gemm: Int8 Int8 -> Float") == 2
    assert "SoftMax: Float -> Int8" in found


@pytest.mark.parametrize(
    ("gpu", "probabilities", "is_fused"),
    [((8, 9), "p8", True), ((9, 0), "p8", True), ((8, 6), "p8", False), ((8, 9), "p", False)],
)
def test_attention_all_in_fp8_is_one_kernel_from_ada_on(
    gpu: tuple[int, int], probabilities: str, is_fused: bool
) -> None:
    body = """k2 = Transpose<perm=[0,1,3,2]>(k)
        c1 = Q8(q)
        c2 = Q8(k2)
        q8 = DQ8(c1)
        k8 = DQ8(c2)
        a = MatMul(q8, k8)
        m = Mul(a, half_s)
        p = Softmax(m)
        c3 = Q8(p)
        c4 = Q8(v)
        p8 = DQ8(c3)
        v8 = DQ8(c4)
        y = MatMul(PROBABILITIES, v8)""".replace("PROBABILITIES", probabilities)
    heads = HEADS.replace("TYPE", "float16")
    found = layers(body, source=heads, result="float16[1,4,16,32] y", gpu=gpu)
    assert ("_gemm_mha_v2: FP8 FP8 FP8 -> Half" in found) == is_fused


def test_a_residual_add_joins_a_float_product_and_the_normalization_behind_an_int8_one() -> None:
    tokens = {"source": "float[1,16,32] x", "result": "float[1,16,32] y"}
    tail = "c = Add(a, x)\nn = LayerNormalization(c, m1x32)\ny = Add(n, c)"
    joined = layers(f"a = MatMul(x, m32x32)\n{tail}", **tokens)
    apart = layers(f"q = Q(x)\np = DQ(q)\nu = DQW(m32x32)\na = MatMul(p, u)\n{tail}", **tokens)
    assert joined[:2] == ["gemm: Float Float -> Float", "Normalization: Float -> Float"]
    assert apart[1:3] == ["gemm: Int8 -> Float", "Normalization: Float Float -> Float Float"]


def test_a_first_int8_layer_with_its_max_pool_is_one_layer() -> None:
    body = """q = Q(x)
        p = DQ(q)
        u = DQW(w7x3x32)
        a = Conv<pads=[3,3,3,3], strides=[2,2]>(p, u)
        r = Relu(a)
        m = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(r)
        q1 = Q2(m)
        y = DQ2(q1)"""
    kernels = predict_kernels(model(body, "float[1,3,32,32] x", "float[1,32,8,8] y"))
    assert [line(kernel) for kernel in kernels][:2] == [
        "Reformat: Float -> Int8",
        "ConvActPool: Int8 -> Int8",
    ]
    assert kernels[1].operations == 2 * 16 * 16 * 32 * 3 * 49


def test_every_layer_reads_what_an_earlier_one_writes() -> None:
    kernels = predict_kernels(model(CLASSIFIER, "float[1,3,8,8] x", "float[1,10] y"))
    known = {"x"}
    for kernel in kernels:
        assert known.issuperset(tensor.name for tensor in kernel.inputs)
        known.update(tensor.name for tensor in kernel.outputs)
    assert "y" in known


def test_another_open_size_than_the_batch_is_refused() -> None:
    network = model("y = Relu(x)", "float[N,32,H,8] x", "float[N,32,H,8] y")
    with pytest.raises(UnpredictableModelError, match="'x' has no size along axis 2") as caught:
        predict_kernels(network)
    assert caught.value.exit_code == 2


def test_a_file_that_is_no_onnx_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"no")
    with pytest.raises(UnpredictableModelError, match=r"m\.onnx: not an ONNX file"):
        predict_kernels(path)


def test_the_model_is_not_changed() -> None:
    network = model(CLASSIFIER, "float[N,3,8,8] x", "float[N,10] y")
    before = onnx.ModelProto()
    before.CopyFrom(network)
    predict_kernels(network, batch=2, remainder="fp16")
    assert network == before


def test_the_page_names_every_rule_and_its_evidence() -> None:
    page = Path("docs/fusion_rules.md").read_text()
    for rule in RULES:
        name = type(rule).__name__
        rows = [row for row in page.splitlines() if f"`{name}`" in row]
        assert rows, name
        assert any(rule.evidence.value in row for row in rows), name
