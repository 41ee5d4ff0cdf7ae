import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from reptrt.engines.surgery import AS_PAIRS, SurgeryError, run_passes

GRIDS = """<float xs = {0.02}, uint8 xz = {120}, float ys = {0.04}, uint8 yz = {90}>"""


def parse(text: str, **values) -> onnx.ModelProto:
    header = '<ir_version: 9, opset_import: ["": 17, "com.microsoft": 1]>'
    model = onnx.parser.parse_model(f"{header}\n{text}")
    for name, value in values.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    return model


def expand(model, operate_model):
    """Both outputs for images that fill the grid; what is left computes on no codes."""
    operated = operate_model(model, AS_PAIRS)
    assert not [op for op in operated.ops if op.startswith("Q") and op != "QuantizeLinear"]
    images = np.random.default_rng(0).uniform(-2.4, 2.7, (1, 4, 8, 8)).astype(np.float32)
    return *operated.outputs({"x": images}), operated


def test_a_convolution_keeps_its_name_weight_scales_and_bias(operate_model):
    rng = np.random.default_rng(0)
    model = parse(
        """net (float[1,4,8,8] x) => (float[1,6,8,8] y) {
            q = QuantizeLinear(x, xs, xz)
            c = QLinearConv<pads=[1,1,1,1]>(q, xs, xz, w, ws, wz, ys, yz, b)
            y = DequantizeLinear(c, ys, yz)
        }""",
        xs=np.float32(0.02), xz=np.uint8(120), ys=np.float32(0.3), yz=np.uint8(90),
        w=rng.integers(-63, 64, (6, 4, 3, 3), np.int8), wz=np.zeros(6, np.int8),
        ws=rng.uniform(0.005, 0.02, 6).astype(np.float32),
        b=rng.integers(-900, 900, 6, np.int32),
    )  # fmt: skip
    model.graph.node[
        1
    ].name = "stem"  # 7 bits of weights: without VNNI, ONNX Runtime saturates sums of two
    before, after, operated = expand(model, operate_model)
    steps = np.abs(before - after) / 0.3
    assert steps.max() <= 1.01  # a value between two codes
    assert (steps > 0.5).mean() < 0.01
    assert operated.node("Conv").name == "stem"
    assert operated.node("Conv").inputs[1].inputs[0].attrs["axis"] == 0


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("com.microsoft.QLinearAdd(q, xs, xz, q, xs, xz, ys, yz)", "Add"),
        ("com.microsoft.QLinearMul(q, xs, xz, q, xs, xz, ys, yz)", "Mul"),
        ("com.microsoft.QLinearSigmoid(q, xs, xz, ys, yz)", "Sigmoid"),
        ("com.microsoft.QLinearLeakyRelu<alpha=0.1>(q, xs, xz, ys, yz)", "LeakyRelu"),
        ("com.microsoft.QLinearSoftmax<axis=-1, opset=13>(q, xs, xz, ys, yz)", "Softmax"),
        ("com.microsoft.QLinearConcat<axis=1>(ys, yz, q, xs, xz, q, xs, xz)", "Concat"),
        ("com.microsoft.QLinearGlobalAveragePool(q, xs, xz, ys, yz)", "GlobalAveragePool"),
        ("com.microsoft.QLinearAveragePool<kernel_shape=[2,2]>(q, xs, xz, ys, yz)", "AveragePool"),
    ],
)
def test_a_contributed_operator_becomes_the_float_one_between_pairs(call, expected, operate_model):
    text = f"""net (float[1,4,8,8] x) => (float[a,b,c,d] y) {GRIDS} {{
        q = QuantizeLinear(x, xs, xz)
        c = {call}
        y = DequantizeLinear(c, ys, yz)
    }}"""
    before, after, operated = expand(parse(text), operate_model)
    assert expected in operated.ops
    assert np.abs(before - after).max() <= 1.01 * 0.04


def test_a_gemm_without_a_result_scale_writes_floats_with_its_bias(operate_model):
    model = parse(
        """net (float[1,4,8,8] x) => (float[1,5] y) {
            q = QuantizeLinear(x, xs, xz)
            f = Flatten(q)
            y = com.microsoft.QGemm<transB=1>(f, xs, xz, w, ws, wz, b)
        }""",
        xs=np.float32(0.02), xz=np.uint8(120), ws=np.float32(0.01), wz=np.int8(0),
        w=np.random.default_rng(0).integers(-9, 9, (5, 256), np.int8),
        b=np.arange(5, dtype=np.int32) * 1000,
    )  # fmt: skip
    before, after, _ = expand(model, operate_model)
    np.testing.assert_allclose(before, after, rtol=1e-4, atol=1e-4)


def test_an_operator_on_channels_last_is_refused_by_name():
    node = helper.make_node(
        "QLinearGlobalAveragePool", ["x", "s", "z", "s", "z"], ["y"], "pool",
        domain="com.microsoft", channels_last=1,
    )  # fmt: skip
    import onnx_graphsurgeon as gs

    infos = [helper.make_tensor_value_info(n, TensorProto.UINT8, [1, 8, 8, 4]) for n in "xy"]
    graph = helper.make_graph([node], "g", infos[:1], infos[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    with pytest.raises(SurgeryError, match="QLinearGlobalAveragePool 'pool'"):
        run_passes(gs.import_onnx(model), AS_PAIRS)


def test_dynamic_quantization_is_explained_with_a_remedy(operate_model):
    model = parse("""net (float[1,4] x) => (uint8[1,4] y) {
        y, s, z = DynamicQuantizeLinear(x)
    }""")
    with pytest.raises(SurgeryError, match=r"dynamic quantization.*requantize"):
        operate_model(model, AS_PAIRS)
