"""What ONNX Runtime makes of a Q/DQ graph on this processor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from engines.cpu_kernels import read_cpu_kernels
from engines.fusion import fusion_report
from engines.runners import ModelFileError

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
    assert convolution.outputs[0][1] == "UInt8"


def test_the_fusion_report_counts_it(quantized: Path) -> None:
    report = fusion_report(read_cpu_kernels(quantized), quantized)
    assert (report["int8_layers"], report["quantizable_layers"]) == (1, 1)
    assert report["float_islands"] == []


def test_a_float_convolution_is_no_integer_kernel(tmp_path: Path, quantized: Path) -> None:
    model = onnx.load(quantized)
    convolution = next(node for node in model.graph.node if node.op_type == "Conv")
    convolution.input[0] = "images"
    onnx.save(model, tmp_path / "half.onnx")
    report = fusion_report(read_cpu_kernels(tmp_path / "half.onnx"), tmp_path / "half.onnx")
    assert report["int8_layers"] == 0


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(ModelFileError, match="does not load"):
        read_cpu_kernels(tmp_path / "bad.onnx")
