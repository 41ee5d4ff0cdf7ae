"""Second-order, column-wise rounding of a weight: the next columns gptq_round each column's error.

Frantar et al., "GPTQ" (https://arxiv.org/abs/2210.17323), after Optimal Brain Surgeon: with
H = X^T X of the layer's quantized input, rounding column j leaves an error that the columns behind it
can absorb; what each of them takes is read off the Cholesky factor of the inverse of H. One of the two
candidates that were measured for RepQuant's weight reconstruction (reconstructed).
"""

from __future__ import annotations

import torch

from reptrt.calibrators.quantized.quantizers import TensorQuantizer

DAMPING = 0.01
"""Added to the diagonal of H, as a share of its mean: inputs may be linearly dependent."""


@torch.no_grad()
def gptq_round(
    weight: torch.Tensor, quantizer: TensorQuantizer, inputs: torch.Tensor
) -> torch.Tensor:
    """Values on the grid of `quantizer` whose products with `inputs` are closest to the float ones.

    Args:
        weight: [out, in], float.
        quantizer: of the weight, calibrated.
        inputs: what the layer reads, quantized, [..., in].

    Returns:
        [out, in].
    """
    rows = inputs.reshape(-1, inputs.shape[-1]).double()
    hessian = rows.T @ rows
    damping = DAMPING * hessian.diagonal().mean().clamp_min(1e-12)
    hessian.diagonal().add_(damping)
    # Upper factor U of the inverse: inverse(H) = U^T U.
    factor = torch.linalg.cholesky(
        torch.cholesky_inverse(torch.linalg.cholesky(hessian)), upper=True
    )
    rest, found = weight.double().clone(), torch.empty_like(weight)
    for column in range(weight.shape[1]):
        found[:, column] = quantizer(rest[:, column : column + 1].to(weight))[:, 0]
        error = (rest[:, column] - found[:, column]) / factor[column, column]
        rest[:, column:] -= error[:, None] * factor[column, column:]
    return found
