from __future__ import annotations

import pytest
import torch

from reptrt.calibrators.quantized.quantizers import (
    MIN_CHANNEL_RATIO,
    MIN_SCALE,
    Fp8Quantizer,
    IntegerGrid,
    LogSqrt2Quantizer,
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
    quantizer = TensorQuantizer(IntegerGrid.unsigned(8))
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


def test_a_range_by_hand() -> None:
    quantizer = TensorQuantizer(IntegerGrid.unsigned(4))
    quantizer.set_range(torch.tensor(-1.1), torch.tensor(2.65))
    assert quantizer.scale == torch.tensor(0.25)
    assert quantizer.zero_point == 4
    assert tuple(map(int, quantizer.multiples)) == (-4, 11)
    x = torch.tensor([-9.0, -1.0, -0.1, 0.0, 0.3, 2.7, 9.0])
    assert quantizer.quantize(x).tolist() == [-4, -4, 0, 0, 1, 11, 11]
    assert quantizer(x).tolist() == [-1.0, -1.0, 0.0, 0.0, 0.25, 2.75, 2.75]


def test_channels_have_ranges_of_their_own_that_need_not_hold_0() -> None:
    channels = TensorQuantizer(IntegerGrid.unsigned(4), num_channels=3, axis=-1)
    channels.set_range(torch.tensor([-1.5, 3.0, -10.0]), torch.tensor([0.0, 4.5, -2.5]))
    torch.testing.assert_close(channels.scale, torch.tensor([0.1, 0.1, 0.5]))
    assert channels.zero_point.tolist() == [15, -30, 20]
    x = torch.tensor([[-0.31, 3.12, -9.8], [2.0, 0.0, 0.0]])
    torch.testing.assert_close(channels(x), torch.tensor([[-0.3, 3.1, -10.0], [0.0, 3.0, -2.5]]))


@pytest.mark.parametrize("bits", range(2, 8))
def test_below_8_bits_every_multiple_of_a_range_that_holds_0_fits_int8(bits: int) -> None:
    quantizer = TensorQuantizer(IntegerGrid.unsigned(bits))
    x = torch.linspace(-20, 20, 4001)
    for low, high in ((-3.0, 0.0), (0.0, 7.0), (-0.01, 5.0), (-4.0, 1.3)):
        quantizer.set_range(torch.tensor(low), torch.tensor(high))
        assert quantizer.offset == 0
        codes = quantizer.quantize(x)
        assert int(codes.max()) - int(codes.min()) == 2**bits - 1
        assert int(codes.min()) <= 0 <= int(codes.max())
        torch.testing.assert_close(codes * quantizer.scale, quantizer(x))


def test_at_8_bits_a_range_travels_less_its_distance_from_the_middle() -> None:
    quantizer = TensorQuantizer(IntegerGrid.unsigned(8))
    x = torch.linspace(-2, 3, 999)
    for low, high, offset in ((-0.2, 2.35, 108), (-1.28, 1.27, 0), (0.0, 2.55, 128)):
        quantizer.set_range(torch.tensor(low), torch.tensor(high))
        assert quantizer.offset == offset
        codes = quantizer.quantize(x)
        assert codes.dtype == torch.int8
        assert (int(codes.min()), int(codes.max())) == (-128, 127)
        torch.testing.assert_close((codes.float() + offset) * quantizer.scale, quantizer(x))


def test_the_range_of_a_signed_grid_is_symmetric() -> None:
    quantizer = TensorQuantizer(IntegerGrid.for_activations(8, signed=True))
    quantizer.set_range(torch.tensor(-5.0), torch.tensor(1.27))
    assert quantizer.scale == torch.tensor(0.01)
    assert quantizer.zero_point == 0


def test_amax_makes_a_quantizer_symmetric_again() -> None:
    quantizer = TensorQuantizer(IntegerGrid.unsigned(6))
    quantizer.set_range(torch.tensor(-1.0), torch.tensor(1.0))
    assert quantizer.zero_point != 0
    quantizer.set_amax(torch.tensor(6.3))
    assert quantizer.zero_point == 0


def probabilities() -> torch.Tensor:
    """Of many sizes, down to 0."""
    x = torch.logspace(-9, 0, 5001, dtype=torch.float64)
    return torch.cat([x, torch.zeros(1, dtype=torch.float64)])


def log_quantizer(bits: int, scale: float = 0.9) -> LogSqrt2Quantizer:
    quantizer = LogSqrt2Quantizer(IntegerGrid.unsigned(bits)).double()
    quantizer.set_amax(torch.tensor(scale))
    return quantizer


@pytest.mark.parametrize("bits", [8, 6, 4, 3])
def test_powers_of_the_root_of_two_are_bit_shifts_of_two_steps(bits: int) -> None:
    quantizer, x = log_quantizer(bits), probabilities()
    codes = quantizer.codes(x)
    is_odd = codes % 2 == 1
    parity = torch.where(is_odd, torch.tensor(2.0).double().sqrt(), 1.0)
    shifted = quantizer.scale * 2.0 ** -torch.ceil(codes / 2) * parity
    inside = codes < 2**bits
    assert is_odd.any()
    torch.testing.assert_close(quantizer(x)[inside], shifted[inside], rtol=1e-14, atol=0)


@pytest.mark.parametrize("bits", [8, 6, 4, 3])
def test_what_lies_beyond_the_logarithmic_grid_is_exactly_0(bits: int) -> None:
    quantizer, x = log_quantizer(bits), probabilities()
    values, codes = quantizer(x), quantizer.codes(x)
    least = 0.9 * 2 ** (-(2**bits - 0.5) / 2)  # rounds to code 2^b
    assert not values[x < least * 0.999].any()
    assert (values[x > least * 1.001] > 0).all()
    assert torch.equal(values == 0, codes == 2**bits)
    assert values[-1] == 0
    assert len(values[values > 0].unique()) <= 2**bits
    assert codes.unique().tolist() == [c for c in range(2**bits + 1) if c in codes]


def test_a_logarithmic_grid_is_relative() -> None:
    quantizer, x = log_quantizer(4), probabilities()
    inside = (x <= 0.9) & (x > 0.9 * 2**-7.6)
    ratio = quantizer(x)[inside] / x[inside]
    assert ratio.min() > 2**-0.2501
    assert ratio.max() < 2**0.2501
    assert (quantizer(x)[x > 0.9] == quantizer.scale).all()
    assert quantizer.offset == 0
    quantizer.enabled = False
    assert quantizer(x) is x


def fp8_values() -> torch.Tensor:
    """Every magnitude of E4M3 by its definition: a sign, 4 bits of exponent biased by 7, 3 of mantissa; no infinity."""
    subnormal = [m / 8 * 2.0**-6 for m in range(8)]
    normal = [(1 + m / 8) * 2.0 ** (e - 7) for e in range(1, 16) for m in range(8)]
    return torch.tensor([*subnormal, *normal[:-1]])  # the last is NaN


def test_fp8_rounds_to_the_nearest_value_of_e4m3() -> None:
    quantizer = Fp8Quantizer(IntegerGrid.for_activations(8, signed=True))
    quantizer.set_amax(torch.tensor(3.0))
    torch.testing.assert_close(quantizer.scale, torch.tensor(3.0 / 448))
    grid = fp8_values() * quantizer.scale
    assert grid[-1] == 3.0
    x = torch.linspace(0, 2.9, 20_011)
    nearest = (x[:, None] - grid).abs().amin(1)
    torch.testing.assert_close((quantizer(x) - x).abs(), nearest, rtol=1e-4, atol=1e-7)
    assert torch.equal(quantizer(-x), -quantizer(x))
    assert torch.equal(quantizer(grid), grid)


def test_fp8_saturates_and_has_no_integer_codes() -> None:
    quantizer = Fp8Quantizer(IntegerGrid.for_activations(8, signed=True))
    quantizer.set_range(torch.tensor(-2.0), torch.tensor(1.0))
    assert torch.equal(quantizer(torch.tensor([-5.0, 1e9])), torch.tensor([-2.0, 2.0]))
    assert not quantizer.is_uniform
    assert quantizer.offset == 0
    quantizer.enabled = False
    x = torch.ones(2)
    assert quantizer(x) is x
