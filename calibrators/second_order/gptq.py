"""Second-order, column-wise rounding of a weight: the next columns make up for each column's error.

Frantar et al., "GPTQ" (https://arxiv.org/abs/2210.17323), after Optimal Brain Surgeon: with H the
covariance of what the layer reads, rounding column j leaves an error that the columns behind it can
absorb; what each of them takes is read off the Cholesky factor of the inverse of H. Columns are rounded
in the order of their variance, the largest first (the paper's act-order). The damping is that of
GPTAQ's code for vision transformers; the paper has 0.01.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from reptrt.calibrators.quantized.quantizers import TensorQuantizer

DAMPING = 0.1
"""Added to the diagonal of H, as a share of its mean: the sample knows the inputs only so well."""


@dataclass(frozen=True)
class RoundedWeight:
    """A weight on its grid, and how far each number was from it.

    Attributes:
        values: points of the grid, in the shape of the weight.
        latents: what was rounded to them, each error before it made up for, within the grid's ends:
            a quantizer turns `latents` into `values`, and learning can start there.
    """

    values: torch.Tensor
    latents: torch.Tensor


@torch.no_grad()
def gptq_round(
    weight: torch.Tensor, quantizer: TensorQuantizer, covariance: torch.Tensor
) -> RoundedWeight:
    """Values on the grid of `quantizer` whose products with the inputs are closest to the float ones.

    Args:
        weight: [out, ...], float.
        quantizer: of the weight, per output channel, calibrated.
        covariance: of what each group of the layer reads, [groups, in, in], float64.
    """
    groups, width = covariance.shape[:2]
    order = covariance.diagonal(dim1=1, dim2=2).argsort(1, descending=True)
    rows, columns = order[:, :, None].expand(-1, -1, width), order[:, None].expand(-1, width, -1)
    factor = _inverse_factor(covariance.gather(1, rows).gather(2, columns))
    own = order[:, None].expand(-1, len(weight) // groups, -1)  # [groups, out of a group, in]
    rest = weight.detach().double().reshape(groups, -1, width).gather(2, own)
    latents, values = torch.empty_like(rest), torch.empty_like(rest)
    for column in range(width):
        latent = _within_grid(rest[:, :, column].reshape(-1, 1).to(weight), quantizer)
        latents[:, :, column] = latent.view(groups, -1)
        values[:, :, column] = quantizer(latent).view(groups, -1)
        error = (rest[:, :, column] - values[:, :, column]) / factor[:, column, column, None]
        rest[:, :, column:] -= error[:, :, None] * factor[:, None, column, column:]
    back = own.argsort(2)
    values, latents = (
        found.gather(2, back).to(weight).view_as(weight) for found in (values, latents)
    )
    return RoundedWeight(values, latents)


def _inverse_factor(covariance: torch.Tensor) -> torch.Tensor:
    """Upper factor U of the inverse of the damped H: inverse(H) = U^T U."""
    mean = covariance.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-12)
    damping = (DAMPING * mean)[:, None].expand(covariance.shape[:2])
    damped = covariance + torch.diag_embed(damping)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor: torch.Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor


def _within_grid(column: torch.Tensor, quantizer: TensorQuantizer) -> torch.Tensor:
    low, high = (multiple * quantizer.scale for multiple in quantizer.multiples)
    return torch.minimum(torch.maximum(column, low[:, None]), high[:, None])
