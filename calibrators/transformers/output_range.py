"""The range of a tensor that only linears read, both ends chosen by what it does to their outputs.

What a GELU makes reaches far up and a little below 0: its few large values and its many small negative
ones are worth what the weights behind them make of them, which percentiles cannot know. Our own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from reptrt.calibrators.quantized.quantizers import TensorQuantizer
from reptrt.calibrators.transformers.percentiles import percentile_ranges

MOST_ROWS = 1500
HIGH_SHARES = torch.linspace(0.2, 1.0, 14).tolist()
LOW_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
LOPSIDED = 0.3
"""Shorter end over longer end; beyond, both ends are tried at the same shares."""


@torch.no_grad()
def set_range_by_output(
    quantizer: TensorQuantizer, x: torch.Tensor, weights: Sequence[torch.Tensor]
) -> None:
    """Give `quantizer` the range of least squared error of (x^ - x) W^T, on a part of the rows of `x`.

    Args:
        quantizer: per tensor, on an unsigned grid.
        x: values [..., in].
        weights: of the linears that read them, each [out, in].
    """
    low, high = percentile_ranges(x, None)[-1]
    low, high = low.clamp(max=0), high.clamp(min=0)
    rows = x.reshape(-1, x.shape[-1])
    rows = rows[:: -(-len(rows) // MOST_ROWS)]
    joined = torch.cat(list(weights)).detach()
    gram = joined.T @ joined
    errors = {}
    for shares in _pairs(float(low), float(high)):
        quantizer.set_range(shares[0] * low, shares[1] * high)
        error = quantizer(rows) - rows
        errors[shares] = float(((error @ gram) * error).sum())
    best = min(errors, key=errors.__getitem__)
    quantizer.set_range(best[0] * low, best[1] * high)


def _pairs(low: float, high: float) -> list[tuple[float, float]]:
    """Shares of both ends that are tried."""
    if -low <= LOPSIDED * high:
        return [(down, up) for up in HIGH_SHARES for down in LOW_SHARES]
    return [(share, share) for share in HIGH_SHARES]
