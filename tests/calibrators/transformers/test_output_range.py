from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from reptrt.calibrators.quantized.quantizers import IntegerGrid, TensorQuantizer
from reptrt.calibrators.transformers.output_range import set_range_by_output
from reptrt.calibrators.transformers.percentiles import set_best_range


def behind_gelu() -> tuple[torch.Tensor, torch.Tensor]:
    """What a GELU makes, [4, 300, 16], and a weight [8, 16] that hardly reads its wide channels."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 300, 16, generator=generator)
    x[..., :3] *= 12
    weight = torch.randn(8, 16, generator=generator)
    weight[:, :3] *= 0.01
    return F.gelu(x), weight


def error(quantizer: TensorQuantizer, x: torch.Tensor, weight: torch.Tensor) -> float:
    return float(((quantizer(x) - x) @ weight.T).square().mean())


def test_both_ends_are_where_the_outputs_want_them() -> None:
    x, weight = behind_gelu()
    ours, plain = (TensorQuantizer(IntegerGrid.unsigned(4)) for _ in range(2))
    set_range_by_output(ours, x, [weight[:5], weight[5:]])
    set_best_range(plain, x)
    assert error(ours, x, weight) < 0.6 * error(plain, x, weight)
    assert ours.scale < plain.scale
    low, high = ours.multiples
    assert -15 <= low <= 0 < high <= 15


@pytest.mark.parametrize("sign", [1, -1])
def test_a_tensor_with_two_long_ends_keeps_their_proportion(sign: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = sign * torch.randn(900, 16, generator=generator), torch.eye(16)
    quantizer = TensorQuantizer(IntegerGrid.unsigned(4))
    set_range_by_output(quantizer, x, [weight])
    low, high = quantizer.multiples
    assert abs(float(low + high)) <= 3


def test_a_tensor_of_zeros_does_no_harm() -> None:
    quantizer = TensorQuantizer(IntegerGrid.unsigned(4))
    set_range_by_output(quantizer, torch.zeros(50, 4), [torch.ones(2, 4)])
    assert quantizer.scale > 0
    assert not quantizer(torch.zeros(3, 4)).any()
