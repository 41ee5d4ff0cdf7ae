"""Quantizer modules: the only state that calibration changes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from calibrators.fake_quant import broadcast_scale, fake_quantize, quantize

MIN_SCALE = 2.0**-40
"""Smallest step size: TensorRT refuses a scale of zero."""

MIN_CHANNEL_RATIO = 2.0**-16
"""Smallest step of a channel over the largest of its tensor.

Engines may store a bias in steps of input scale * weight scale, as int32. The dead channels of real
networks (MobileOne-S0 has dozens, with weights of 1e-10) would overflow it and lose their bias.
"""


@dataclass(frozen=True)
class IntegerGrid:
    """Codes of a symmetric quantizer.

    Attributes:
        num_bits: 2..8; the codes travel as INT8, less `offset` (below 8 bits behind a Clip).
        quant_min: lowest code.
        quant_max: highest code.
    """

    num_bits: int
    quant_min: int
    quant_max: int

    @classmethod
    def for_weights(cls, num_bits: int) -> IntegerGrid:
        """Narrow range [-(2^(b-1) - 1), 2^(b-1) - 1], as TensorRT expects of weights."""
        limit = 2 ** (num_bits - 1) - 1
        return cls(num_bits, -limit, limit)

    @classmethod
    def for_activations(cls, num_bits: int, *, signed: bool) -> IntegerGrid:
        """Full signed range, or [0, 2^b - 1] for a non-negative tensor below 8 bits.

        At 8 bits an unsigned tensor does not fit TensorRT's symmetric INT8 and uses 0..127, unless
        its readers allow `unsigned_8_bits`.
        """
        if signed or num_bits == 8:
            return cls(num_bits, -(2 ** (num_bits - 1)), 2 ** (num_bits - 1) - 1)
        return cls(num_bits, 0, 2**num_bits - 1)

    @classmethod
    def unsigned_8_bits(cls) -> IntegerGrid:
        """All of [0, 255], for the points that `calibrators.half_range` names."""
        return cls(8, 0, 255)

    @property
    def offset(self) -> int:
        """Codes travel as int8 minus this: 128 where they end at 255, else 0."""
        return max(0, self.quant_max - 127)


class TensorQuantizer(nn.Module):
    """Fake quantization of one tensor, or of several that share one scale.

    Args:
        grid: the integer codes.
        num_channels: length of a per-channel scale; None for per-tensor.
        axis: axis of the channels; None for per-tensor.

    Attributes:
        scale: step size, shape [] or [num_channels], > 0; 1 until calibrated.
        enabled: when False the module is the identity (the float model).
    """

    scale: torch.Tensor

    def __init__(
        self, grid: IntegerGrid, num_channels: int | None = None, axis: int | None = None
    ) -> None:
        super().__init__()
        self.grid = grid
        self.axis = axis
        self.enabled = True
        self.register_buffer("scale", torch.ones([] if num_channels is None else [num_channels]))

    def set_amax(self, amax: torch.Tensor) -> None:
        """Choose the scale whose highest code stands for `amax` (shape of `scale`, >= 0).

        A dead channel gets a small step, and a dead tensor, for which any step will do, 1.
        """
        scale = amax.to(self.scale) / self.grid.quant_max
        largest = float(scale.max())
        floor = max(MIN_SCALE, MIN_CHANNEL_RATIO * largest) if largest > 0 else 1.0
        self.scale.copy_(scale.clamp_min(floor).expand_as(self.scale))

    def quantize(self, x: torch.Tensor) -> torch.Tensor:
        """Codes of `x`, less the grid's offset, as int8 of the same shape."""
        scale = broadcast_scale(self.scale, self.axis, x.ndim)
        codes = quantize(x, scale, self.grid.quant_min, self.grid.quant_max)
        return (codes - self.grid.offset).to(torch.int8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Fake-quantize `x`, or return it untouched when disabled."""
        if not self.enabled:
            return x
        scale = broadcast_scale(self.scale, self.axis, x.ndim)
        return fake_quantize(x, scale, self.grid.quant_min, self.grid.quant_max)

    def extra_repr(self) -> str:
        """Bits, codes and granularity."""
        granularity = "per_tensor" if self.axis is None else f"per_channel, axis={self.axis}"
        return (
            f"int{self.grid.num_bits} [{self.grid.quant_min}, {self.grid.quant_max}], {granularity}"
        )
