from __future__ import annotations

import numpy as np
import onnx
import pytest

from reptrt.engines.surgery import DEFAULT_PASSES, SurgeryError, clean

# The shape of what pipeline/export/export.py writes.
EXPORTED = """net (float[N,3,8,8] images) => (float[N,5] logits)
<float a = {0.03}, float b = {0.05}, int8 z = {0}, float low = {0.0}, float high = {3.0}> {
    q0 = QuantizeLinear(images, a, z)
    d0 = DequantizeLinear(q0, a, z)
    w0 = DequantizeLinear<axis=0>(conv_weight, conv_scale, conv_zero)
    c0 = Conv<pads=[1,1,1,1]>(d0, w0, conv_bias)
    r0 = Clip(c0, low, high)
    q1 = QuantizeLinear(r0, b, z)
    d1 = DequantizeLinear(q1, b, z)
    m0 = GlobalAveragePool(d1)
    f0 = Flatten(m0)
    q2 = QuantizeLinear(f0, b, z)
    d2 = DequantizeLinear(q2, b, z)
    w1 = DequantizeLinear<axis=0>(gemm_weight, gemm_scale, gemm_zero)
    logits = Gemm<transB=1>(d2, w1, gemm_bias)
}"""


@pytest.fixture
def exported(parse):
    rng = np.random.default_rng(0)

    def codes(*shape):
        return rng.integers(-127, 128, size=shape).astype(np.int8)

    return parse(
        EXPORTED,
        conv_weight=codes(4, 3, 3, 3),
        conv_scale=rng.uniform(0.001, 0.01, size=4),
        conv_zero=np.zeros(4, np.int8),
        conv_bias=rng.normal(size=4),
        gemm_weight=codes(5, 4),
        gemm_scale=rng.uniform(0.001, 0.01, size=5),
        gemm_zero=np.zeros(5, np.int8),
        gemm_bias=rng.normal(size=5),
    )


def test_our_own_export_comes_through_bit_equal(exported, run_model, tmp_path):
    exported.metadata_props.add(key="note", value="kept")
    onnx.save(exported, tmp_path / "model.qdq.onnx")
    changed = clean(tmp_path / "model.qdq.onnx", tmp_path / "model.trt.onnx")
    assert list(changed) == [type(p).__name__ for p in DEFAULT_PASSES]
    assert {name for name, sites in changed.items() if sites} <= {"StripDeadNodes"}
    cleaned = onnx.load(tmp_path / "model.trt.onnx")
    assert sorted(n.op_type for n in cleaned.graph.node) == sorted(
        n.op_type for n in exported.graph.node
    )
    assert cleaned.metadata_props[0].value == "kept"
    assert cleaned.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"
    feed = {"images": np.random.default_rng(1).normal(size=(2, 3, 8, 8)).astype(np.float32)}
    np.testing.assert_array_equal(run_model(exported, feed)[0], run_model(cleaned, feed)[0])


def test_a_half_precision_remainder_comes_through_bit_equal(parse, run_model, tmp_path):
    rng = np.random.default_rng(0)
    model = parse(
        """net (float[1,3,8,8] images) => (float[1,4,8,8] p3)
        <float a = {0.03}, int8 z = {0}> {
            q0 = QuantizeLinear(images, a, z)
            d0 = DequantizeLinear(q0, a, z)
            h0 = Cast<to=10>(d0)
            w0 = DequantizeLinear<axis=0>(weight, scale, zero)
            g0 = Cast<to=10>(w0)
            c0 = Conv<pads=[1,1,1,1]>(h0, g0, bias)
            s0 = Sigmoid(c0)
            m0 = Mul(c0, s0)
            p3 = Cast<to=1>(m0)
        }""",
        weight=rng.integers(-127, 128, size=(4, 3, 3, 3)).astype(np.int8),
        scale=rng.uniform(0.001, 0.01, size=4),
        zero=np.zeros(4, np.int8),
        bias=rng.normal(size=4).astype(np.float16),
    )
    onnx.save(model, tmp_path / "a.onnx")
    assert sum(clean(tmp_path / "a.onnx", tmp_path / "b.onnx").values()) == 0
    feed = {"images": rng.normal(size=(1, 3, 8, 8)).astype(np.float32)}
    cleaned = run_model(onnx.load(tmp_path / "b.onnx"), feed)[0]
    np.testing.assert_array_equal(cleaned, run_model(model, feed)[0])


def test_cleaning_twice_changes_nothing_more(exported, tmp_path):
    onnx.save(exported, tmp_path / "model.onnx")
    clean(tmp_path / "model.onnx", tmp_path / "model.onnx")
    once = (tmp_path / "model.onnx").read_bytes()
    assert sum(clean(tmp_path / "model.onnx", tmp_path / "model.onnx").values()) == 0
    assert (tmp_path / "model.onnx").read_bytes() == once


def test_external_weights_are_taken_in(exported, run_model, tmp_path):
    feed = {"images": np.ones((1, 3, 8, 8), np.float32)}
    expected = run_model(exported, feed)[0]
    onnx.save(
        exported,
        tmp_path / "a.onnx",
        save_as_external_data=True,
        location="a.bin",
        size_threshold=0,
    )
    clean(tmp_path / "a.onnx", tmp_path / "b.onnx")
    (tmp_path / "a.bin").unlink()
    np.testing.assert_array_equal(run_model(onnx.load(tmp_path / "b.onnx"), feed)[0], expected)
    with pytest.raises(SurgeryError, match="external data cannot be read"):
        clean(tmp_path / "a.onnx", tmp_path / "b.onnx")


def test_a_model_over_two_gigabytes_is_refused_before_it_is_read(exported, tmp_path):
    onnx.save(
        exported,
        tmp_path / "a.onnx",
        save_as_external_data=True,
        location="a.bin",
        size_threshold=0,
    )
    model = onnx.load(tmp_path / "a.onnx", load_external_data=False)
    weight = next(i for i in model.graph.initializer if i.name == "conv_weight")
    for entry in weight.external_data:
        if entry.key == "length":
            entry.value = str(3 * 10**9)
    (tmp_path / "a.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(SurgeryError, match=r"3\.0 GB, but surgery takes models up to 2 GB"):
        clean(tmp_path / "a.onnx", tmp_path / "b.onnx")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"not an onnx file at all", "not an ONNX file"),
        (b"", "not a valid ONNX model"),
    ],
)
def test_what_is_no_model_is_one_line_of_error(content, message, tmp_path):
    if content is not None:
        (tmp_path / "a.onnx").write_bytes(content)
    with pytest.raises(SurgeryError, match=message) as caught:
        clean(tmp_path / "a.onnx", tmp_path / "b.onnx")
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "a.onnx") in str(caught.value)


def test_a_refused_model_leaves_no_file_behind(parse, tmp_path):
    onnx.save(
        parse(
            """g (float[4] x) => (float[4] y) <float s = {-1.0}, int8 z = {3}> {
                q = QuantizeLinear(x, s, z)
                y = DequantizeLinear(q, s, z)
            }"""
        ),
        tmp_path / "a.onnx",
    )
    with pytest.raises(SurgeryError):
        clean(tmp_path / "a.onnx", tmp_path / "b.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]
