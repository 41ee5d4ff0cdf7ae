"""Learnable stand-ins for the quantizers and the bias of a layer, for the time of a reconstruction.

Everything is learned in units of its own, so that one learning rate suits all layers: integer weights
in codes, biases in the size of the output, scales and gains as logarithms. (With one absolute rate for all weights, blocks got
better one by one and the network fell apart.)
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from reptrt.calibrators.quantized.channel_affine import ChannelAffine
from reptrt.calibrators.quantized.fake_quant import broadcast_scale
from reptrt.calibrators.quantized.quantizers import MIN_SCALE, TensorQuantizer
from reptrt.calibrators.reconstruction.qprep import factor_out, fold
from reptrt.calibrators.settings import Rounding

STRETCH = 1.1
"""AdaRound's rectified sigmoid reaches from 1 - STRETCH to STRETCH, and is clipped to 0..1."""


class _FakeQuantize(torch.autograd.Function):
    """Fake quantization with the straight-through gradient, and LSQ's for the logarithmic scale.

    d/dx is 1 inside the range and 0 outside; d/d(log s) is the quantized value minus the value where that
    lies inside (Esser et al., "Learned Step Size Quantization", arXiv:1902.08153).
    PyTorch's own kernel with a mask takes four times as long on a CPU (docs/effort.md). What is `kept` stays float.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        log_scale: torch.Tensor,
        quant_min: float,
        quant_max: float,
        kept: torch.Tensor | None,
    ) -> torch.Tensor:
        scale = log_scale.exp()
        codes = x / scale
        inside = (codes >= quant_min) & (codes <= quant_max)
        y = codes.round_().clamp_(quant_min, quant_max).mul_(scale)
        if kept is not None:
            torch.where(kept, x, y, out=y)
            inside |= kept
        ctx.save_for_backward(x, y, inside)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = gradients
        x, y, inside = ctx.saved_tensors
        gradient_x = gradient * inside
        gradient_scale = _dot(gradient, y) - _dot(gradient_x, x)
        return gradient_x, gradient_scale, None, None, None


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Sum of the products, without a tensor of them."""
    return torch.dot(a.reshape(-1), b.reshape(-1))


class LearnedScale(nn.Module):
    """An activation quantizer whose step size is learned as a logarithm."""

    def __init__(self, quantizer: TensorQuantizer) -> None:
        super().__init__()
        low, high = quantizer.multiples
        self.low, self.high = float(low), float(high)
        self.log_scale = nn.Parameter(quantizer.scale.detach().log())

    def forward(self, x: torch.Tensor, kept: torch.Tensor | None = None) -> torch.Tensor:
        """Fake-quantize `x`, but for the elements that are `kept` float."""
        # In bf16 neighbouring codes of 8 bits would run together.
        result = _FakeQuantize.apply(x.float(), self.log_scale, self.low, self.high, kept)
        assert isinstance(result, torch.Tensor)
        return result

    def scale(self) -> torch.Tensor:
        """Step size, [], > 0."""
        return self.log_scale.exp().clamp_min(MIN_SCALE)

    @torch.no_grad()
    def stretch(self, factor: float) -> None:
        """Make the step size `factor` > 0 times as large."""
        self.log_scale.add_(math.log(factor))


class StraightThrough(nn.Module):
    """A quantizer that stays as it is, whose gradient is that of the identity."""

    def __init__(self, quantizer: TensorQuantizer) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Fake-quantize `x`."""
        quantized: torch.Tensor = self.quantizer(x)
        return x + (quantized - x).detach()


class LearnedLayer(nn.Module):
    """A quantized layer as QPRep sees it: gain * (codes * step * x + B') + shift.

    Args:
        weight: float weight [out, ...].
        bias: float bias [out]; None for a layer without one.
        quantizer: of the weight; its scale is where the learning starts.
        affine: start of gain and shift.
        rounding: `ste`, `adaround` or `nearest`.
        unit: typical size of the layer's output, > 0: biases are learned in it.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        quantizer: TensorQuantizer,
        affine: ChannelAffine,
        rounding: Rounding,
        unit: float = 1.0,
    ) -> None:
        super().__init__()
        self.rounding, self.affine = rounding, affine
        low, high = quantizer.multiples
        mirrored = affine.gain < 0
        low, high = torch.where(mirrored, -high, low), torch.where(mirrored, -low, high)
        self.low, self.high = (broadcast_scale(limit, 0, weight.ndim) for limit in (low, high))
        scale = quantizer.scale.detach()
        start = torch.zeros_like(scale) if bias is None else bias.detach()
        kernel, inner = factor_out(weight.detach(), start, affine)
        self.step = scale / affine.gain.abs()
        codes = kernel / broadcast_scale(self.step, 0, weight.ndim)
        self.log_gain = nn.Parameter(torch.zeros_like(scale))
        self._unit = unit
        self._inner_unit = unit / float(affine.gain.abs().mean())
        self.inner_bias = nn.Parameter(inner / self._inner_unit)
        self.shift = nn.Parameter(affine.shift / unit)
        if rounding == "adaround":
            self.floor = torch.floor(codes)
            self.logit = nn.Parameter(_unstretch(codes - self.floor))
        else:
            self.codes = nn.Parameter(codes, requires_grad=rounding == "ste")

    def weight(self) -> torch.Tensor:
        """Fake-quantized weight with the gain in it, [out, ...]."""
        codes = self._codes()
        return codes * broadcast_scale(self.step * self._gain(), 0, codes.ndim)

    def bias(self) -> torch.Tensor:
        """Bias behind the gain, [out]."""
        return self._gain() * (self.inner_bias * self._inner_unit) + self.shift * self._unit

    @torch.no_grad()
    def follow_by(self, gain: torch.Tensor, offset: torch.Tensor) -> None:
        """Put `gain` [out] > 0 times the output plus `offset` [out] in the place of the output."""
        self.log_gain.add_(gain.log())
        self.shift.copy_(gain * self.shift + offset / self._unit)

    @property
    def rounding_parameter(self) -> tuple[str, nn.Parameter]:
        """What decides the codes, and the name of its learning rate."""
        return ("logit", self.logit) if self.rounding == "adaround" else ("codes", self.codes)

    def indecision(self, sharpness: float) -> torch.Tensor:
        """AdaRound's regulariser: mean of 1 - |2h - 1|^sharpness, 0 when every h is 0 or 1."""
        return 1 - (2 * self._fraction() - 1).abs().pow(sharpness).mean()

    @torch.no_grad()
    def folded(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Codes [out, ...], scale [out] and bias [out] of the plain layer that this one equals."""
        codes = torch.round(self._codes() if self.rounding != "adaround" else self._decided())
        affine = ChannelAffine(self._gain(), self.shift * self._unit)
        return fold(codes, self.step, self.inner_bias * self._inner_unit, affine)

    def _gain(self) -> torch.Tensor:
        return self.affine.gain * self.log_gain.exp()

    def _codes(self) -> torch.Tensor:
        if self.rounding == "adaround":
            return self._clamp(self.floor + self._fraction())
        codes = self._clamp(self.codes)
        return codes + (torch.round(codes) - codes).detach()

    def _decided(self) -> torch.Tensor:
        return self._clamp(self.floor + (self._fraction() >= 0.5))

    def _fraction(self) -> torch.Tensor:
        return torch.clamp(torch.sigmoid(self.logit) * (2 * STRETCH - 1) + 1 - STRETCH, 0, 1)

    def _clamp(self, codes: torch.Tensor) -> torch.Tensor:
        return torch.clamp(codes, self.low, self.high)


def _unstretch(fraction: torch.Tensor) -> torch.Tensor:
    """Logit whose rectified sigmoid is `fraction`."""
    inner = (fraction.clamp(0.01, 0.99) + STRETCH - 1) / (2 * STRETCH - 1)
    return torch.logit(inner)
