from __future__ import annotations

import pytest
import torch

from calibrators.quantizers import (
    MIN_CHANNEL_RATIO,
    MIN_SCALE,
    IntegerGrid,
    TensorQuantizer,
)


@pytest.mark.parametrize("bits", range(2, 9))
def test_weights_use_a_narrow_symmetric_range(bits: int) -> None:
    grid = IntegerGrid.for_weights(bits)
    assert (grid.quant_min, grid.quant_max) == (1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1)
    assert grid.num_bits == bits


@pytest.mark.parametrize("bits", range(2, 9))
def test_signed_activations_use_every_code(bits: int) -> None:
    grid = IntegerGrid.for_activations(bits, signed=True)
    assert (grid.quant_min, grid.quant_max) == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


@pytest.mark.parametrize("bits", range(2, 8))
def test_below_8_bits_a_non_negative_tensor_gets_an_unsigned_grid_that_fits_int8(
    bits: int,
) -> None:
    grid = IntegerGrid.for_activations(bits, signed=False)
    assert (grid.quant_min, grid.quant_max) == (0, 2**bits - 1)
    assert grid.quant_max <= 127


def test_at_8_bits_a_non_negative_tensor_stays_on_the_int8_grid() -> None:
    signed = IntegerGrid.for_activations(8, signed=True)
    assert IntegerGrid.for_activations(8, signed=False) == signed == IntegerGrid(8, -128, 127)


def test_the_wide_unsigned_grid_travels_as_int8_less_128() -> None:
    quantizer = TensorQuantizer(IntegerGrid.unsigned_8_bits())
    quantizer.set_amax(torch.tensor(2.55))
    x = torch.tensor([-1.0, 0.0, 0.012, 1.28, 2.55, 9.0])
    assert quantizer.grid.offset == 128
    assert quantizer.quantize(x).tolist() == [-128, -128, -127, 0, 127, 127]
    assert quantizer.quantize(x).dtype == torch.int8
    torch.testing.assert_close(quantizer(x), torch.tensor([0.0, 0.0, 0.01, 1.28, 2.55, 2.55]))


@pytest.mark.parametrize("bits", range(2, 9))
def test_every_other_grid_travels_as_it_is(bits: int) -> None:
    grids = [IntegerGrid.for_activations(bits, signed=signed) for signed in (False, True)]
    assert {grid.offset for grid in (*grids, IntegerGrid.for_weights(bits))} == {0}


def test_amax_becomes_the_highest_code() -> None:
    quantizer = TensorQuantizer(IntegerGrid.for_activations(8, signed=True))
    quantizer.set_amax(torch.tensor(2.54))
    assert quantizer.scale == torch.tensor(0.02)
    assert quantizer.quantize(torch.tensor([2.54, 0.031, -0.049, -9.0])).tolist() == [
        *(127, 2, -2, -128)
    ]
    assert quantizer.quantize(torch.zeros(1)).dtype == torch.int8


def test_a_four_bit_unsigned_quantizer_by_hand() -> None:
    quantizer = TensorQuantizer(IntegerGrid.for_activations(4, signed=False))
    quantizer.set_amax(torch.tensor(3.75))
    x = torch.tensor([-1.0, 0.1, 0.2, 3.6, 5.0])
    assert quantizer.scale == torch.tensor(0.25)
    assert quantizer.quantize(x).tolist() == [0, 0, 1, 14, 15]
    assert quantizer(x).tolist() == [0.0, 0.0, 0.25, 3.5, 3.75]


def test_channels_have_their_own_scales_and_a_dead_one_a_fraction_of_the_largest() -> None:
    quantizer = TensorQuantizer(IntegerGrid.for_weights(8), num_channels=3, axis=0)
    weight = torch.tensor([[1.27, -0.02], [0.0, 0.0], [-2.54, 0.02]])
    quantizer.set_amax(weight.abs().amax(1))
    assert quantizer.scale.tolist() == torch.tensor([0.01, 0.02 * MIN_CHANNEL_RATIO, 0.02]).tolist()
    assert quantizer.quantize(weight).tolist() == [[127, -2], [0, 0], [-127, 1]]
    assert torch.equal(quantizer(weight)[1], torch.zeros(2))


def test_a_dead_tensor_gets_a_step_of_one_and_a_tiny_one_the_smallest() -> None:
    quantizer = TensorQuantizer(IntegerGrid.for_activations(8, signed=True))
    quantizer.set_amax(torch.tensor(0.0))
    assert quantizer.scale == 1.0
    quantizer.set_amax(torch.tensor(1e-30))
    assert quantizer.scale == MIN_SCALE


def test_the_smallest_scale_is_a_normal_float32() -> None:
    smallest = torch.tensor(MIN_SCALE)
    assert smallest > 0
    assert smallest == MIN_SCALE


def test_one_amax_sets_every_channel() -> None:
    quantizer = TensorQuantizer(IntegerGrid.for_weights(4), num_channels=2, axis=0)
    quantizer.set_amax(torch.tensor(0.7))
    torch.testing.assert_close(quantizer.scale, torch.tensor([0.1, 0.1]))


def test_a_disabled_quantizer_is_the_identity() -> None:
    quantizer = TensorQuantizer(IntegerGrid.for_weights(8))
    x = torch.randn(10)
    quantizer.enabled = False
    assert quantizer(x) is x


def test_forward_is_scale_times_codes() -> None:
    quantizer = TensorQuantizer(IntegerGrid.for_weights(5), num_channels=4, axis=1)
    quantizer.set_amax(torch.tensor([0.5, 1.0, 2.0, 4.0]))
    x = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0))
    expected = quantizer.quantize(x).float() * quantizer.scale.view(1, 4, 1)
    assert torch.equal(quantizer(x), expected)


def test_a_printed_quantizer_tells_its_grid() -> None:
    per_tensor = TensorQuantizer(IntegerGrid.for_activations(6, signed=False))
    per_channel = TensorQuantizer(IntegerGrid.for_weights(8), num_channels=2, axis=0)
    assert "int6 [0, 63], per_tensor" in repr(per_tensor)
    assert "int8 [-127, 127], per_channel, axis=0" in repr(per_channel)
