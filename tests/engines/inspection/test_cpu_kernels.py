"""What ONNX Runtime makes of a Q/DQ graph on this processor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from reptrt.engines.inspection.cpu_kernels import read_cpu_kernels
from reptrt.engines.inspection.fusion import fusion_report
from reptrt.engines.inspection.kernels import Kernel, Tensor
from reptrt.engines.runtime.runners import ModelFileError

TEXT = """<ir_version: 9, opset_import: ["": 19]>
g (float[1,4,8,8] images) => (float[1,2,8,8] y)
<float s = {0.05}, uint8 z = {128}, float t = {0.1}>
{
    p = QuantizeLinear(images, s, z)  a = DequantizeLinear(p, s, z)
    k = DequantizeLinear<axis=0>(w, v, zeros)  b = DequantizeLinear<axis=0>(bias, bs, bz)
    c = Conv(a, k, b)
    q = QuantizeLinear(c, t, z)  d = DequantizeLinear(q, t, z)
    y = Sigmoid(d)
}"""


@pytest.fixture
def quantized(tmp_path: Path) -> Path:
    model = onnx.parser.parse_model(TEXT)
    scales = np.float32([0.01, 0.02])
    constants = {
        "w": np.arange(8, dtype=np.int8).reshape(2, 4, 1, 1),
        "v": scales,
        "zeros": np.int8([0, 0]),
        "bias": np.int32([5, -7]),
        "bs": scales * np.float32(0.05),
        "bz": np.int32([0, 0]),
    }
    for name, value in constants.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    convolution = next(node for node in model.graph.node if node.op_type == "Conv")
    convolution.name = "layer.of.the.network"
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    return path


def test_an_integer_convolution_keeps_the_name_of_its_layer(quantized: Path) -> None:
    kernels = read_cpu_kernels(quantized)
    convolution = next(kernel for kernel in kernels if "Conv" in kernel.kind)
    assert convolution.kind == "QLinearConv"
    assert convolution.onnx_layers == ("layer.of.the.network",)
    assert convolution.is_int8
    assert convolution.outputs[0].dtype == "UInt8"


def test_the_fusion_report_counts_it(quantized: Path) -> None:
    report = fusion_report(read_cpu_kernels(quantized), quantized)
    assert (report.int8_layers, report.quantizable_layers) == (1, 1)
    assert report.float_islands == ()


LAYER = """a{0} = DequantizeLinear({1}, s, z)  k{0} = DequantizeLinear<axis=0>(w{0}, v, zeros)
    b{0} = DequantizeLinear<axis=0>(bias, bs, zeros32)"""


def kernels_of(path: Path, text: str, *weights: np.ndarray) -> dict[str, Kernel]:
    """Kernels of two-channel layers by kind, the last of each; `p` holds the codes of the input."""
    head = '<ir_version: 9, opset_import: ["": 19]> '
    grid = "<float s = {0.05}, uint8 z = {128}, uint8 high = {255}> {p = QuantizeLinear(x, s, z) "
    model = onnx.parser.parse_model(head + text.replace("{", grid, 1))
    constants = {f"w{index}": weight for index, weight in enumerate(weights)} | {
        "v": np.float32([0.01, 0.02]),
        "zeros": np.int8([0, 0]),
        "bias": np.int32([5, -7]),
        "bs": np.float32([0.01, 0.02]) * np.float32(0.05),
        "zeros32": np.int32([0, 0]),
    }
    for name, value in constants.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    onnx.save(model, path)
    return {kernel.kind: kernel for kernel in read_cpu_kernels(path)}


def test_what_moves_codes_between_two_integer_convolutions_keeps_their_type(tmp_path: Path) -> None:
    weight = np.arange(4, dtype=np.int8).reshape(2, 2, 1, 1)
    kernels = kernels_of(
        tmp_path / "m.onnx",
        "g (float[1,2,8,8] x) => (float[1,2,4,4] y) {"
        + LAYER.format(0, "p")
        + """ c = Conv(a0, k0, b0)  q = QuantizeLinear(c, s, z)  r = Clip(q, z, high)
        d = DequantizeLinear(r, s, z)  m = MaxPool<kernel_shape=[2,2], strides=[2,2]>(d)
        n = QuantizeLinear(m, s, z)  g = DequantizeLinear(n, s, z)
        h = Concat<axis=1>(g, g)  i = QuantizeLinear(h, s, z) """
        + LAYER.format(1, "i")
        + """ e = Conv(a1, k1, b1)  t = QuantizeLinear(e, s, z)  f = DequantizeLinear(t, s, z)
        y = Sigmoid(f) }""",
        weight,
        np.tile(weight, (1, 2, 1, 1)),
    )
    for kind in ("Clip", "NhwcMaxPool", "QLinearConcat", "QLinearConv"):
        assert kernels[kind].inputs[0].dtype == kernels[kind].outputs[0].dtype == "UInt8"
    assert kernels["QLinearConv"].is_int8
    assert kernels["QuantizeLinear"].inputs == (Tensor("x", "Float"),)
    assert kernels["DequantizeLinear"].outputs[0].dtype == "Float"
    assert kernels["Sigmoid"].outputs == (Tensor("y", "Float"),)


def test_a_linear_whose_result_is_not_quantized_returns_floats(tmp_path: Path) -> None:
    layer = "g (float[1,4] x) => (float[1,2] y) {" + LAYER.format(0, "p") + "%s y = Sigmoid(c) }"
    weight = np.arange(8, dtype=np.int8).reshape(2, 4)
    gemm = " c = Gemm<transB=1>(a0, k0, b0)"
    kernels = kernels_of(tmp_path / "m.onnx", layer % gemm, weight)
    assert kernels["QGemm"].is_int8
    assert kernels["QGemm"].outputs == kernels["Sigmoid"].inputs == (Tensor("c", "Float"),)
    pair = gemm.replace("c", "h") + " q = QuantizeLinear(h, s, z) c = DequantizeLinear(q, s, z)"
    kernels = kernels_of(tmp_path / "m.onnx", layer % pair, weight)
    assert kernels["QGemm"].outputs == (Tensor("q", "UInt8"),)


def test_types_that_change_in_float_layers_are_told_apart(tmp_path: Path) -> None:
    kernels = kernels_of(
        tmp_path / "m.onnx",
        """g (float[1,2] x) => (int64[1,1] y) {
        a = DequantizeLinear(p, s, z)  k = DequantizeLinear(w0, s, z)  c = MatMul(a, k)
        f = Sigmoid(c)  e = Mul(c, f)  y = ArgMax<axis=1>(e) }""",
        np.arange(8, dtype=np.uint8).reshape(2, 4),
    )
    assert kernels["MatMulIntegerToFloat"].outputs == (Tensor("c", "Float"),)
    assert kernels["QuickGelu"].outputs == (Tensor("e", "Float"),)
    assert kernels["ArgMax"].outputs == (Tensor("y", "Int64"),)


def test_half_precision_that_onnx_runtime_computes_in_float_is_float(tmp_path: Path) -> None:
    kernels = kernels_of(
        tmp_path / "m.onnx",
        """g (float[1,2] x, float16[1,2] u) => (float16[1,2] h, uint8[1,2] p) {
        t = Softplus(u)  h = Softplus(t) }""",
    )
    assert kernels["Softplus"].inputs[0].dtype == "Float"
    assert kernels["Cast"].outputs == (Tensor("h", "Half"),)


def test_a_float_convolution_is_no_integer_kernel(tmp_path: Path, quantized: Path) -> None:
    model = onnx.load(quantized)
    convolution = next(node for node in model.graph.node if node.op_type == "Conv")
    convolution.input[0] = "images"
    onnx.save(model, tmp_path / "half.onnx")
    report = fusion_report(read_cpu_kernels(tmp_path / "half.onnx"), tmp_path / "half.onnx")
    assert report.int8_layers == 0


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(ModelFileError, match="does not load"):
        read_cpu_kernels(tmp_path / "bad.onnx")
