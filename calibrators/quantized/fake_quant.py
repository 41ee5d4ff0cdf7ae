"""Quantization on a symmetric integer grid, as pure functions on tensors.

The arithmetic is ONNX QuantizeLinear/DequantizeLinear to the bit: divide, round half to even,
saturate, multiply. `torch.fake_quantize_*` multiplies by a rounded 1/scale instead, which moves
codes near ties.
"""

from __future__ import annotations

import torch

Limit = float | torch.Tensor
"""A lowest or highest code; a tensor broadcastable to what is quantized."""


def quantize(
    x: torch.Tensor, scale: torch.Tensor, quant_min: Limit, quant_max: Limit
) -> torch.Tensor:
    """Integer codes of `x`, kept in the dtype of `x`.

    Args:
        x: real values, any shape.
        scale: step size > 0, broadcastable to `x`.
        quant_min: lowest code.
        quant_max: highest code.
    """
    codes = (x / scale).round_()  # in place: memory, not arithmetic, is what this takes time for
    return codes.clamp_(quant_min, quant_max)  # type: ignore[arg-type]


def fake_quantize(
    x: torch.Tensor, scale: torch.Tensor, quant_min: Limit, quant_max: Limit
) -> torch.Tensor:
    """Values of `x` after quantize and dequantize: the nearest points of the grid."""
    return quantize(x, scale, quant_min, quant_max).mul_(scale)


def broadcast_scale(scale: torch.Tensor, axis: int | None, ndim: int) -> torch.Tensor:
    """View a per-channel scale [C] so that it multiplies axis `axis` of a tensor of `ndim` axes."""
    if axis is None:
        return scale
    return scale.view([-1 if i == axis % ndim else 1 for i in range(ndim)])
