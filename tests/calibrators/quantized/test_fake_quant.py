from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from reptrt.calibrators.quantized.fake_quant import broadcast_scale, fake_quantize, quantize


def onnx_qdq(
    x: torch.Tensor, scale: torch.Tensor, axis: int = 0
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes and values of ONNX Runtime's QuantizeLinear and DequantizeLinear."""
    shape = "" if scale.ndim == 0 else str(scale.numel())
    x_shape = ",".join(map(str, x.shape))
    model = onnx.parser.parse_model(f"""
        <ir_version: 10, opset_import: ["": 19]>
        pair (float[{x_shape}] x, float[{shape}] s, int8[{shape}] z)
          => (int8[{x_shape}] q, float[{x_shape}] y) {{
            q = QuantizeLinear <axis = {axis}> (x, s, z)
            y = DequantizeLinear <axis = {axis}> (q, s, z)
        }}""")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    zero = np.zeros(tuple(scale.shape), dtype=np.int8)
    codes, values = session.run(None, {"x": x.numpy(), "s": scale.numpy(), "z": zero})
    return codes, values


def test_ties_round_to_even_and_codes_saturate() -> None:
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5, 127.5, 1e9, -128.5, -1e9])
    codes = quantize(x, torch.tensor(1.0), -128, 127)
    assert codes.tolist() == [0, 2, 2, 0, -2, -2, 126, 127, 127, -128, -128]


def test_a_value_is_replaced_by_the_nearest_grid_point() -> None:
    x = torch.tensor([0.74, 0.76, -3.9, 10.0])
    values = fake_quantize(x, torch.tensor(0.5), -8, 7)
    assert values.tolist() == [0.5, 1.0, -4.0, 3.5]


@pytest.mark.parametrize("seed", range(3))
def test_codes_and_values_equal_onnx_runtimes_to_the_bit(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.rand((), generator=generator) * 0.1 + 1e-3
    steps = torch.arange(-150, 150) + 0.5  # every tie, as float32 can tell
    x = torch.cat([torch.randn(20000, generator=generator) * 80 * scale, steps * scale, steps])
    codes, values = onnx_qdq(x, scale)
    assert np.array_equal(quantize(x, scale, -128, 127).numpy(), codes)
    assert np.array_equal(fake_quantize(x, scale, -128, 127).numpy(), values)


def test_exact_ties_equal_onnx_runtimes() -> None:
    x = (torch.arange(-300, 300) / 2) * 0.25
    codes, values = onnx_qdq(x, torch.tensor(0.25))
    assert np.array_equal(quantize(x, torch.tensor(0.25), -128, 127).numpy(), codes)
    assert np.array_equal(fake_quantize(x, torch.tensor(0.25), -128, 127).numpy(), values)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_scale_per_channel_equals_onnx_runtimes(axis: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 5, 3, 3, generator=generator)
    scale = torch.rand(x.shape[axis], generator=generator) * 0.05 + 1e-3
    view = broadcast_scale(scale, axis, x.ndim)
    codes, values = onnx_qdq(x, scale, axis)
    assert np.array_equal(quantize(x, view, -128, 127).numpy(), codes)
    assert np.array_equal(fake_quantize(x, view, -128, 127).numpy(), values)


def test_a_scale_per_tensor_is_not_viewed() -> None:
    scale = torch.tensor(0.5)
    assert broadcast_scale(scale, None, 4) is scale
    assert broadcast_scale(torch.ones(3), 1, 4).shape == (1, 3, 1, 1)
