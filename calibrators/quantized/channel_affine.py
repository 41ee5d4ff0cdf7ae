"""The per-channel affine map of QPRep, which disappears at export."""

from __future__ import annotations

from dataclasses import dataclass

import torch

MIN_GAIN_RATIO = 1e-4
"""Smallest |gain| of a channel over the largest of its layer: dividing by less blows K' up."""


@dataclass(frozen=True, eq=False)
class ChannelAffine:
    """`y = gain * convolution + shift`, one pair per output channel.

    Attributes:
        gain: [out], finite, never 0, may be negative.
        shift: [out], finite.
    """

    gain: torch.Tensor
    shift: torch.Tensor

    def to(self, device: torch.device | str) -> ChannelAffine:
        """Copy on `device`."""
        return ChannelAffine(self.gain.to(device), self.shift.to(device))

    @classmethod
    def identity(cls, num_channels: int) -> ChannelAffine:
        """Gain 1, shift 0: the whole bias stays in the convolution."""
        return cls(torch.ones(num_channels), torch.zeros(num_channels))

    @classmethod
    def from_statistics(cls, mean: torch.Tensor, std: torch.Tensor) -> ChannelAffine:
        """Gain `std`, shift `mean`: the convolution's output starts with mean 0 and deviation 1.

        Args:
            mean: [out], of the merged convolution's output, bias included.
            std: [out], >= 0, of the same. A channel that hardly varies gets gain 1, shift 0.
        """
        return _guarded(std, mean)


def _guarded(gain: torch.Tensor, shift: torch.Tensor) -> ChannelAffine:
    """Gain 1 and shift 0 for every channel that cannot be divided by its gain."""
    finite = gain.isfinite() & shift.isfinite()
    magnitude = gain.abs().where(finite, torch.zeros_like(gain))
    usable = magnitude > MIN_GAIN_RATIO * magnitude.max()
    return ChannelAffine(
        gain.where(usable, torch.ones_like(gain)), shift.where(usable, torch.zeros_like(shift))
    )
