"""Where to clip a weight: where the outputs of its layer move least, not the weight itself.

For a row w of a weight and its rounded form w^, the mean squared error of the output is (w^ - w) H
(w^ - w)^T, with H the covariance of what the layer reads (the bias takes the mean back). Ranges are
shrunk towards 0 and the best is kept, for each row. Our own search; the measure is that of Nagel et
al., "Up or Down?" (https://arxiv.org/abs/2004.10568), eq. 13.
"""

from __future__ import annotations

import torch

from reptrt.calibrators.quantized.quantizers import TensorQuantizer

SHARES = torch.linspace(0.35, 1.0, 27).tolist()
"""Of the largest magnitude, or of both ends: what is tried."""


@torch.no_grad()
def clip_by_output(
    quantizer: TensorQuantizer, weight: torch.Tensor, covariance: torch.Tensor
) -> None:
    """Set `quantizer` to the range of every row of `weight` with the least error of the output.

    Args:
        quantizer: per output channel; an unsigned grid gets a zero point, a signed one is symmetric.
        weight: [out, ...].
        covariance: of what each group of the layer reads, [groups, in, in].
    """
    groups, width = covariance.shape[:2]
    hessian = covariance.to(weight)
    rows = weight.detach().flatten(1)
    low, high = rows.amin(1).clamp(max=0), rows.amax(1).clamp(min=0)
    if quantizer.grid.quant_min < 0:
        high = torch.maximum(-low, high)
    least = torch.full_like(high, torch.inf)
    best = torch.ones_like(high)
    for share in SHARES:
        quantizer.set_range(share * low, share * high)
        error = (quantizer(rows) - rows).view(groups, -1, width)
        moved = ((error @ hessian) * error).sum(2).flatten()
        best = torch.where(moved < least, share, best)
        least = torch.minimum(moved, least)
    quantizer.set_range(best * low, best * high)
