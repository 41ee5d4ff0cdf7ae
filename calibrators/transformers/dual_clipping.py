"""Learnable per-channel dual clipping of LayerNorm outputs.

RepQuant, "Towards Accurate Post-Training Quantization of Large Transformer Models via Scale
Reparameterization" (https://arxiv.org/abs/2402.05628): two thresholds per channel, learned, before
scale and zero point are formed. Its formulas are not public to us; reconstructed here: thresholds
start at RepQ-ViT's percentiles and are learned by Adam so that the linears that read the tensor give
what they give in float,

    min over low, high of  mean || (x^ - x) W' ||^2,   s = (high - low) / (2^b - 1),  z = round(-low / s),

with rounding straight through, hence PACT's gradient outside the thresholds and LSQ's inside. Where that
does not lower the error, the thresholds stay where they were.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from reptrt.calibrators.quantized.quantizers import TensorQuantizer

STEPS = 100
ROWS_PER_STEP = 1024
ROWS_TO_COMPARE = 8192
RATE = 0.01
"""Adam's, of thresholds in units of each channel's range; with a cosine to 0."""


def learn_thresholds(
    channels: TensorQuantizer,
    x: torch.Tensor,
    weights: Sequence[torch.Tensor],
    generator: torch.Generator,
) -> None:
    """Learn the thresholds of the calibrated per-channel quantizer `channels`, in place.

    Args:
        channels: axis -1, on an unsigned grid; its range is where the learning starts.
        x: LayerNorm output [..., channels].
        weights: of the linears that read it, each [out, channels].
        generator: draws the rows of each step.
    """
    rows, weight = x.reshape(-1, x.shape[-1]), torch.cat(list(weights)).detach()
    start_low, start_high = (multiple * channels.scale for multiple in channels.multiples)
    span = start_high - start_low
    moves = torch.zeros(2, len(span), device=x.device, requires_grad=True)
    optimizer = torch.optim.Adam([moves], lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    levels = channels.grid.quant_max - channels.grid.quant_min
    probe = rows[:: max(1, len(rows) // ROWS_TO_COMPARE)]
    before = _output_error(channels, probe, weight)
    for _ in range(STEPS):
        drawn = torch.randint(len(rows), (ROWS_PER_STEP,), generator=generator).to(x.device)
        batch = rows[drawn]
        low, high = start_low + moves[0] * span, start_high + moves[1] * span
        error = (_fake_quantize(batch, low, high, levels) - batch) @ weight.T
        optimizer.zero_grad()
        error.square().mean().backward()  # type: ignore[no-untyped-call]  # torch's own
        optimizer.step()
        schedule.step()
    start = channels.scale.clone(), channels.zero_point.clone()
    found = moves.detach()
    channels.set_range(start_low + found[0] * span, start_high + found[1] * span)
    if not _output_error(channels, probe, weight) < before:
        channels.scale.copy_(start[0])
        channels.zero_point.copy_(start[1])


@torch.no_grad()
def _output_error(channels: TensorQuantizer, rows: torch.Tensor, weight: torch.Tensor) -> float:
    return float(((channels(rows) - rows) @ weight.T).square().mean())


def _fake_quantize(
    x: torch.Tensor, low: torch.Tensor, high: torch.Tensor, levels: int
) -> torch.Tensor:
    """Asymmetric fake quantization that is differentiable in both thresholds."""
    scale = ((high - low) / levels).clamp_min(1e-12)
    zero_point = _round(-low / scale)
    return (torch.clamp(_round(x / scale) + zero_point, 0, levels) - zero_point) * scale


def _round(x: torch.Tensor) -> torch.Tensor:
    return x + (torch.round(x) - x).detach()
