"""Quantizer modules: the only state that calibration changes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from reptrt.calibrators.quantized.fake_quant import Limit, broadcast_scale, fake_quantize, quantize

MIN_SCALE = 2.0**-40
"""Smallest step size: TensorRT refuses a scale of zero."""

MIN_CHANNEL_RATIO = 2.0**-16
"""Smallest step of a channel over the largest of its tensor.

Engines may store a bias in steps of input scale * weight scale, as int32. The dead channels of real
networks (MobileOne-S0 has dozens, with weights of 1e-10) would overflow it and lose their bias.
"""


@dataclass(frozen=True)
class IntegerGrid:
    """Codes of a quantizer.

    Attributes:
        num_bits: 2..8; the codes are stored as INT8, minus `offset` (below 8 bits behind a Clip).
        quant_min: lowest code.
        quant_max: highest code.
    """

    num_bits: int
    quant_min: int
    quant_max: int

    @property
    def is_legal(self) -> bool:
        """Whether its codes are those of some quantizer here."""
        codes = 2**self.num_bits if 2 <= self.num_bits <= 8 else 0
        span = self.quant_max - self.quant_min + 1
        return 1 < span <= codes and -codes // 2 <= self.quant_min <= 0 < self.quant_max

    @classmethod
    def for_weights(cls, num_bits: int) -> IntegerGrid:
        """Narrow range [-(2^(b-1) - 1), 2^(b-1) - 1], as TensorRT expects of weights."""
        limit = 2 ** (num_bits - 1) - 1
        return cls(num_bits, -limit, limit)

    @classmethod
    def for_activations(cls, num_bits: int, *, signed: bool) -> IntegerGrid:
        """Full signed range, or [0, 2^b - 1] for a non-negative tensor below 8 bits.

        At 8 bits an unsigned tensor does not fit TensorRT's symmetric INT8 and uses 0..127, unless
        its readers allow `unsigned`.
        """
        if signed or num_bits == 8:
            return cls(num_bits, -(2 ** (num_bits - 1)), 2 ** (num_bits - 1) - 1)
        return cls(num_bits, 0, 2**num_bits - 1)

    @classmethod
    def unsigned(cls, num_bits: int) -> IntegerGrid:
        """All of [0, 2^b - 1]: of a quantizer with a zero point, or of a non-negative tensor.

        8 bits of it only where `reptrt.calibrators.quantized.half_range` says that they can travel.
        """
        return cls(num_bits, 0, 2**num_bits - 1)

    @property
    def offset(self) -> int:
        """Subtracted from codes to store them as int8: 128 where they end at 255, else 0."""
        return max(0, self.quant_max - 127)


class TensorQuantizer(nn.Module):
    """Fake quantization of one tensor, or of several that share one scale.

    x = (code - zero_point) * scale, with codes clamped to the grid. Engines know no zero point: what
    travels is the multiple `code - zero_point` of the step, which fits int8 below 8 bits, and at 8
    bits after a shift of the tensor by `offset` steps.

    Args:
        grid: the integer codes.
        num_channels: length of a per-channel scale; None for per-tensor.
        axis: axis of the channels; None for per-tensor.

    Attributes:
        scale: step size, shape [] or [num_channels], > 0; 1 until calibrated.
        zero_point: code that stands for 0, an integer in the shape and dtype of `scale`; 0 where the
            quantizer is symmetric.
        enabled: when False the module is the identity (the float model).
    """

    scale: torch.Tensor
    zero_point: torch.Tensor
    is_uniform = True
    """Whether its codes are integers, evenly spaced; only those have steps to learn, to clip and to shift."""

    def __init__(
        self, grid: IntegerGrid, num_channels: int | None = None, axis: int | None = None
    ) -> None:
        super().__init__()
        self.grid = grid
        self.axis = axis
        self.enabled = True
        shape = [] if num_channels is None else [num_channels]
        self.register_buffer("scale", torch.ones(shape))
        self.register_buffer("zero_point", torch.zeros(shape))

    def set_amax(self, amax: torch.Tensor) -> None:
        """Make the quantizer symmetric, its highest code standing for `amax` (shape of `scale`, >= 0).

        A channel of zeros gets a small step, and a tensor of zeros the step 1.
        """
        self._set_scale(amax.to(self.scale) / self.grid.quant_max)
        self.zero_point.zero_()

    def set_range(self, low: torch.Tensor, high: torch.Tensor) -> None:
        """Let the lowest code stand for `low` and the highest for `high`, 0 being a multiple.

        On a signed grid the range is -`high` to `high`.

        Args:
            low: shape of `scale`, <= `high`; need not be negative.
            high: shape of `scale`.
        """
        grid = self.grid
        if grid.quant_min < 0:
            self.set_amax(high)
        else:
            self._set_scale((high - low).to(self.scale) / (grid.quant_max - grid.quant_min))
            self.zero_point.copy_(torch.round(grid.quant_min - low.to(self.scale) / self.scale))

    @property
    def multiples(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Lowest and highest multiple of the step, in the shape of `scale`."""
        return self.grid.quant_min - self.zero_point, self.grid.quant_max - self.zero_point

    @property
    def is_legal(self) -> bool:
        """Whether every step is a number above 0, and every zero point a code's."""
        scale, zero_point = self.scale.double(), self.zero_point.double()
        is_whole = zero_point.isfinite() & (zero_point == zero_point.round())
        return bool((scale.isfinite() & (scale > 0)).all() and is_whole.all())

    @property
    def offset(self) -> int:
        """Subtracted from multiples of the step to store them as int8; 0 but for some 8-bit activations."""
        return self.grid.offset - int(self.zero_point) if self.grid.offset else 0

    def quantize(self, x: torch.Tensor) -> torch.Tensor:
        """Multiples of the step nearest to `x`, less `offset`, as int8 of the same shape."""
        scale, low, high = self._broadcast(x.ndim)
        return (quantize(x, scale, low, high) - self.offset).to(torch.int8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Fake-quantize `x`, or return it untouched when disabled."""
        return fake_quantize(x, *self._broadcast(x.ndim)) if self.enabled else x

    def extra_repr(self) -> str:
        """Bits, codes and granularity."""
        granularity = "per_tensor" if self.axis is None else f"per_channel, axis={self.axis}"
        return (
            f"int{self.grid.num_bits} [{self.grid.quant_min}, {self.grid.quant_max}], {granularity}"
        )

    def _set_scale(self, scale: torch.Tensor) -> None:
        largest = float(scale.detach().max())
        floor = max(MIN_SCALE, MIN_CHANNEL_RATIO * largest) if largest > 0 else 1.0
        self.scale.copy_(scale.clamp_min(floor).expand_as(self.scale))

    def _broadcast(self, ndim: int) -> tuple[torch.Tensor, Limit, Limit]:
        """Scale and `multiples`, broadcastable to a tensor of `ndim` axes."""
        low, high = self.multiples
        if self.axis is None:  # clamping to numbers is several times as fast
            return self.scale, float(low), float(high)
        scale, low, high = (broadcast_scale(t, self.axis, ndim) for t in (self.scale, low, high))
        return scale, low, high


class LogSqrt2Quantizer(TensorQuantizer):
    """Softmax probabilities on a logarithmic grid: scale * 2^(-code / 2).

    RepQ-ViT (arXiv:2212.08254), eq. 9 to 12: the base sqrt(2) is the base 2 of bit shifts with a step
    that depends on the parity of the code,

        2^(-q/2) = 2^(-ceil(q/2)) * (1 if q is even, sqrt(2) if it is odd).

    Codes beyond the grid stand for 0. Its codes are no INT8 values: the product that reads it is float.
    """

    is_uniform = False

    @property
    def offset(self) -> int:
        """0: its codes are not stored as int8."""
        return 0

    def set_amax(self, amax: torch.Tensor) -> None:
        """Let code 0 stand for `amax` ([], > 0)."""
        self._set_scale(amax.to(self.scale))

    def set_range(self, low: torch.Tensor, high: torch.Tensor) -> None:
        """Let code 0 stand for `high`."""
        self.set_amax(high)

    def codes(self, x: torch.Tensor) -> torch.Tensor:
        """Codes of `x` in its dtype; `quant_max` + 1 stands for 0."""
        steps = torch.round(-2 * torch.log2(x / self.scale))
        return torch.clamp(steps, self.grid.quant_min, self.grid.quant_max + 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Fake-quantize `x` >= 0, or return it untouched when disabled."""
        if not self.enabled:
            return x
        codes = self.codes(x)
        return torch.where(codes > self.grid.quant_max, 0.0, torch.exp2(-codes / 2) * self.scale)


class Fp8Quantizer(TensorQuantizer):
    """Codes of FP8 E4M3, per tensor: floats of three bits of mantissa and magnitudes up to 448, times the scale.

    Micikevicius et al., "FP8 Formats for Deep Learning" (https://arxiv.org/abs/2209.05433). Its `grid` counts the
    bits and says no more.
    """

    is_uniform = False
    largest = 448.0

    @property
    def offset(self) -> int:
        """0: its codes are not stored as int8."""
        return 0

    def set_amax(self, amax: torch.Tensor) -> None:
        """Let the largest code stand for `amax` ([], >= 0)."""
        self._set_scale(amax.to(self.scale) / self.largest)

    def set_range(self, low: torch.Tensor, high: torch.Tensor) -> None:
        """Let the largest code stand for the larger magnitude of both ends."""
        self.set_amax(torch.maximum(low.abs(), high.abs()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Fake-quantize `x`, or return it untouched when disabled."""
        if not self.enabled:
            return x
        codes = (x / self.scale).clamp(-self.largest, self.largest).to(torch.float8_e4m3fn)
        return codes.to(x.dtype) * self.scale
