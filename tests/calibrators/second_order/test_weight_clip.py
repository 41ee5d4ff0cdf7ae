from __future__ import annotations

import pytest
import torch

from reptrt.calibrators.quantized.quantizers import IntegerGrid, TensorQuantizer
from reptrt.calibrators.second_order.weight_clip import clip_by_output

OUT, IN = 6, 40


def case() -> tuple[torch.Tensor, torch.Tensor]:
    """A weight [OUT, IN] with a large number of either sign a row, and a covariance [1, IN, IN] that hardly sees them."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(OUT, IN, generator=generator)
    weight[:, 7], weight[:, 8] = 12, -12
    rows = torch.randn(500, IN, generator=generator)
    rows[:, 7:9] *= 0.01
    return weight, (rows.T @ rows / 500)[None].double()


def error(
    quantizer: TensorQuantizer, weight: torch.Tensor, covariance: torch.Tensor
) -> torch.Tensor:
    moved = (quantizer(weight) - weight).double()
    return ((moved @ covariance[0]) * moved).sum(1)


@pytest.mark.parametrize("grid", [IntegerGrid.for_weights(4), IntegerGrid.unsigned(4)], ids=str)
def test_what_no_input_reads_is_clipped(grid: IntegerGrid) -> None:
    weight, covariance = case()
    quantizer, plain = (TensorQuantizer(grid, OUT, axis=0) for _ in range(2))
    plain.set_range(weight.amin(1), weight.amax(1))
    clip_by_output(quantizer, weight, covariance)
    assert (error(quantizer, weight, covariance) < 0.5 * error(plain, weight, covariance)).all()
    assert (quantizer.multiples[1] * quantizer.scale < 8).all()


def test_what_all_inputs_read_is_kept() -> None:
    weight, covariance = case()
    covariance[0, 7, 7] = 1e4
    quantizer = TensorQuantizer(IntegerGrid.for_weights(4), OUT, axis=0)
    clip_by_output(quantizer, weight, covariance)
    torch.testing.assert_close(quantizer.scale * 7, torch.full([OUT], 12.0), rtol=0.02, atol=0)


def test_a_signed_grid_stays_symmetric_and_a_dead_row_harmless() -> None:
    weight, covariance = case()
    weight[2] = 0
    weight[3] = -weight[3]
    quantizer = TensorQuantizer(IntegerGrid.for_weights(4), OUT, axis=0)
    clip_by_output(quantizer, weight.view(OUT, IN // 4, 2, 2), covariance)
    assert not quantizer.zero_point.any()
    assert (quantizer.scale > 0).all()
    assert not quantizer(weight)[2].any()
    assert quantizer(weight)[3].abs().max() < 8
