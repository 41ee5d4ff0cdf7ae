"""RepQ-ViT's choice of a range: the best of three pairs of percentiles, by squared error.

Li et al., "RepQ-ViT: Scale Reparameterization for Post-Training Quantization of Vision
Transformers" (https://arxiv.org/abs/2212.08254), and its released code: for p in 0.999, 0.9999 and
0.99999 the range is from the (1 - p)- to the p-quantile, and the p of the least mean squared error is
kept: one for a tensor, or one for each channel.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from reptrt.calibrators.quantized.quantizers import TensorQuantizer

PERCENTILES = (0.999, 0.9999, 0.99999)

Range = tuple[torch.Tensor, torch.Tensor]


def set_best_range(quantizer: TensorQuantizer, x: torch.Tensor) -> None:
    """Give `quantizer` the asymmetric range of least squared error on `x`.

    A per-tensor range is widened to hold 0, so that every multiple of its step fits int8; a
    per-channel one, of a tensor that is reparameterized before it travels, is not.

    Args:
        quantizer: per-tensor, or per-channel with one channel per index of `axis` of `x`.
        x: values, any shape.
    """
    ranges = percentile_ranges(x, quantizer.axis)
    if quantizer.axis is None:
        ranges = [(low.clamp(max=0), high.clamp(min=0)) for low, high in ranges]
    _set_best(quantizer, x, ranges)


def set_best_amax(quantizer: TensorQuantizer, x: torch.Tensor) -> None:
    """As `set_best_range`, but symmetric about 0: the end that is further from it counts."""
    amaxes = [torch.maximum(-low, high) for low, high in percentile_ranges(x, quantizer.axis)]
    _set_best(quantizer, x, [(-amax, amax) for amax in amaxes])


def _set_best(quantizer: TensorQuantizer, x: torch.Tensor, ranges: Sequence[Range]) -> None:
    x = x.detach()
    errors = []
    for low, high in ranges:
        quantizer.set_range(low, high)
        error = (quantizer(x) - x).square()
        is_whole = quantizer.axis is None
        errors.append(
            error.mean() if is_whole else error.movedim(quantizer.axis, 0).flatten(1).mean(1)
        )
    best = torch.stack(errors).argmin(0, keepdim=True)
    low, high = (torch.stack(ends).gather(0, best)[0] for ends in zip(*ranges, strict=True))
    quantizer.set_range(low, high)


def percentile_ranges(x: torch.Tensor, axis: int | None) -> list[Range]:
    """The (low, high) pairs of `PERCENTILES`, [] or [channels], on the device of `x`."""
    values = x.detach().cpu()
    rows = values.reshape(1, -1) if axis is None else values.movedim(axis, 0).flatten(1)
    probabilities = [*PERCENTILES, *(1 - p for p in PERCENTILES)]
    # Not torch.quantile, which refuses more than 16 million elements.
    found = torch.from_numpy(np.quantile(rows.numpy(), probabilities, axis=1)).to(x)
    found = found[:, 0] if axis is None else found
    count = len(PERCENTILES)
    return list(zip(found[count:], found[:count], strict=True))
