from __future__ import annotations

import math

import pytest
import torch

from reptrt.calibrators.histogram.methods import channel_amax
from reptrt.calibrators.quantized.channel_affine import ChannelAffine
from reptrt.calibrators.quantized.quantizers import IntegerGrid, LogSqrt2Quantizer, TensorQuantizer
from reptrt.calibrators.reconstruction.learned import LearnedLayer, LearnedScale, StraightThrough
from reptrt.calibrators.settings import Rounding

CHANNELS = 6
AFFINES = {
    "identity": ChannelAffine.identity(CHANNELS),
    "dense_branch": ChannelAffine(
        torch.tensor([0.5, -2.0, 0.01, -0.3, 7.0, 1.0]), torch.linspace(-1, 1, CHANNELS)
    ),
    "statistics": ChannelAffine.from_statistics(
        torch.linspace(-3, 3, CHANNELS), torch.tensor([0.2, 5.0, 0.0, 1.0, 0.7, 30.0])
    ),
}
ROUNDINGS: tuple[Rounding, ...] = ("ste", "adaround", "nearest")

every_affine = pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES.keys())
every_rounding = pytest.mark.parametrize("rounding", ROUNDINGS)


def parts(bits: int = 4) -> tuple[torch.Tensor, torch.Tensor, TensorQuantizer]:
    """Weight, bias and the min-max quantizer of a layer."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(CHANNELS, 3, 3, 3, generator=generator)
    weight *= torch.logspace(-2, 1, CHANNELS).view(-1, 1, 1, 1)
    quantizer = TensorQuantizer(IntegerGrid.for_weights(bits), num_channels=CHANNELS, axis=0)
    quantizer.set_amax(channel_amax(weight))
    return weight, torch.randn(CHANNELS, generator=generator), quantizer


def disturb(layer: LearnedLayer) -> None:
    """Move every parameter as far as a learning that goes wrong would."""
    generator = torch.Generator().manual_seed(1)
    for parameter in layer.parameters():
        parameter.data += 2 * torch.randn(parameter.shape, generator=generator)


def learned_scale(grid: IntegerGrid, scale: float) -> LearnedScale:
    quantizer = TensorQuantizer(grid)
    quantizer.scale.fill_(scale)
    return LearnedScale(quantizer)


@every_affine
@pytest.mark.parametrize("rounding", ["ste", "nearest"])
def test_at_the_start_the_layer_is_the_plain_quantized_one(
    affine: ChannelAffine, rounding: Rounding
) -> None:
    weight, bias, quantizer = parts()
    layer = LearnedLayer(weight, bias, quantizer, affine, rounding)
    torch.testing.assert_close(layer.weight(), quantizer(weight), rtol=1e-5, atol=0)
    torch.testing.assert_close(layer.bias(), bias, rtol=1e-5, atol=1e-5)


@every_affine
def test_at_the_start_adaround_is_the_float_layer_up_to_a_hundredth_of_a_step(
    affine: ChannelAffine,
) -> None:
    weight, bias, quantizer = parts()
    layer = LearnedLayer(weight, bias, quantizer, affine, "adaround")
    steps = (layer.weight().detach() - weight) / quantizer.scale.view(-1, 1, 1, 1)
    assert float(steps.abs().max()) <= 0.0101
    torch.testing.assert_close(layer.bias(), bias, rtol=1e-5, atol=1e-5)


@every_affine
@every_rounding
def test_at_the_start_the_folded_layer_has_the_nearest_codes(
    affine: ChannelAffine, rounding: Rounding
) -> None:
    weight, bias, quantizer = parts()
    codes, scale, folded_bias = LearnedLayer(weight, bias, quantizer, affine, rounding).folded()
    assert torch.equal(codes.to(torch.int8), quantizer.quantize(weight))
    torch.testing.assert_close(scale, quantizer.scale, rtol=1e-5, atol=0)
    torch.testing.assert_close(folded_bias, bias, rtol=1e-5, atol=1e-5)


@every_affine
@every_rounding
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_whatever_is_learned_folds_into_codes_in_range_and_a_positive_scale(
    affine: ChannelAffine, rounding: Rounding, bits: int
) -> None:
    weight, bias, quantizer = parts(bits)
    layer = LearnedLayer(weight, bias, quantizer, affine, rounding)
    disturb(layer)
    codes, scale, folded_bias = layer.folded()
    assert torch.equal(codes, codes.round())
    assert int(codes.min()) >= quantizer.grid.quant_min
    assert int(codes.max()) <= quantizer.grid.quant_max
    assert float(scale.min()) > 0
    assert torch.equal(folded_bias, layer.bias())
    if rounding != "adaround":
        folded = codes * scale.view(-1, 1, 1, 1)
        torch.testing.assert_close(folded, layer.weight(), rtol=1e-5, atol=0)


def test_adaround_that_has_decided_is_the_layer_it_folds_into() -> None:
    weight, bias, quantizer = parts()
    layer = LearnedLayer(weight, bias, quantizer, AFFINES["dense_branch"], "adaround")
    generator = torch.Generator().manual_seed(1)
    up = torch.rand(weight.shape, generator=generator) < 0.5
    layer.logit.data = torch.where(up, 9.0, -9.0)
    codes, scale, _ = layer.folded()
    torch.testing.assert_close(codes * scale.view(-1, 1, 1, 1), layer.weight(), rtol=1e-5, atol=0)
    assert float(layer.indecision(2.0).detach()) == 0
    steps = (layer.weight().detach() - weight) / quantizer.scale.view(-1, 1, 1, 1)
    moved = steps.abs() > 1e-3  # not so where the float weight is a code already
    upwards = up ^ (AFFINES["dense_branch"].gain.view(-1, 1, 1, 1) < 0)
    assert torch.equal((steps > 0)[moved], upwards[moved])
    assert 0.95 < float(moved.float().mean()) < 1
    assert float(steps.abs().max()) < 1


def test_indecision_by_hand() -> None:
    weight, bias, quantizer = parts()
    layer = LearnedLayer(weight, bias, quantizer, AFFINES["identity"], "adaround")
    layer.logit.data.zero_()  # h = 1/2
    assert float(layer.indecision(2.0).detach()) == pytest.approx(1.0)
    layer.logit.data.fill_(math.log(0.7 / 0.3))  # h = 1.2 * 0.7 - 0.1 = 0.74
    assert float(layer.indecision(2.0).detach()) == pytest.approx(1 - 0.48**2, rel=1e-5)


def test_a_negative_gain_turns_the_codes_and_not_the_scale() -> None:
    weight = torch.tensor([[1.0, -0.4, 0.7], [0.2, 0.1, -1.0]])
    quantizer = TensorQuantizer(IntegerGrid.for_weights(3), num_channels=2, axis=0)
    quantizer.set_amax(channel_amax(weight))  # steps of 1/3
    affine = ChannelAffine(torch.tensor([-2.0, 4.0]), torch.tensor([0.5, -0.5]))
    layer = LearnedLayer(weight, torch.tensor([1.0, 2.0]), quantizer, affine, "ste")
    assert layer.codes.detach().round().tolist() == [[-3, 1, -2], [1, 0, -3]]
    assert layer.inner_bias.tolist() == [-0.75, 1.875]  # -0.25 and 0.625 in units of 1 / mean gain
    codes, scale, bias = layer.folded()
    assert codes.tolist() == [[3, -1, 2], [1, 0, -3]]
    torch.testing.assert_close(scale, torch.full((2,), 1 / 3))
    assert bias.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES.keys())
def test_a_step_moves_biases_in_units_of_the_output(affine: ChannelAffine) -> None:
    """A layer that is 64 times as loud has the same parameters, and its biases move 64 times as far."""
    moves = []
    for factor in (1.0, 64.0):
        weight, bias, quantizer = parts()
        quantizer.scale *= factor
        louder = ChannelAffine(factor * affine.gain, factor * affine.shift)
        layer = LearnedLayer(factor * weight, factor * bias, quantizer, louder, "ste", 0.5 * factor)
        start = layer.bias().detach()
        layer.inner_bias.data += 0.25
        middle = layer.bias().detach()
        layer.shift.data += 0.25
        moves.append((middle - start, layer.bias().detach() - middle, layer.shift.detach()))
    for quiet, loud, factor in zip(*moves, (64.0, 64.0, 1.0), strict=True):
        torch.testing.assert_close(loud, factor * quiet, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(moves[0][1], torch.full((CHANNELS,), 0.125), rtol=0, atol=1e-5)
    inner = moves[0][0].abs().mean()
    assert float(inner) == pytest.approx(0.125, rel=1e-3)


@every_affine
def test_the_unit_changes_nothing_but_the_speed(affine: ChannelAffine) -> None:
    weight, bias, quantizer = parts()
    layers = [LearnedLayer(weight, bias, quantizer, affine, "ste", unit) for unit in (1.0, 1e-3)]
    torch.testing.assert_close(layers[0].bias(), layers[1].bias(), rtol=1e-4, atol=1e-5)
    (codes, scale, folded), (codes_2, scale_2, folded_2) = (layer.folded() for layer in layers)
    assert torch.equal(codes, codes_2)
    assert torch.equal(scale, scale_2)
    torch.testing.assert_close(folded, folded_2, rtol=1e-4, atol=1e-5)


def test_a_layer_without_bias_starts_at_zero() -> None:
    weight, _, quantizer = parts()
    layer = LearnedLayer(weight, None, quantizer, AFFINES["statistics"], "ste")
    torch.testing.assert_close(layer.bias(), torch.zeros(CHANNELS), rtol=0, atol=1e-6)


def test_codes_get_a_straight_through_gradient_inside_the_grid_and_none_outside() -> None:
    weight, bias, quantizer = parts()
    layer = LearnedLayer(weight, bias, quantizer, AFFINES["identity"], "ste")
    layer.codes.data[0, 0, 0] = torch.tensor([0.4, 9.0, -9.0])  # the grid ends at 7
    layer.weight().sum().backward()
    assert layer.codes.grad is not None
    torch.testing.assert_close(
        layer.codes.grad[0, 0, 0], torch.tensor([1.0, 0.0, 0.0]) * quantizer.scale[0]
    )
    torch.testing.assert_close(
        layer.log_gain.grad, layer.weight().detach().flatten(1).sum(1), rtol=1e-4, atol=1e-6
    )


def test_nearest_codes_are_not_learned() -> None:
    weight, bias, quantizer = parts()
    layer = LearnedLayer(weight, bias, quantizer, AFFINES["identity"], "nearest")
    (layer.weight().sum() + layer.bias().sum()).backward()
    assert layer.codes.grad is None
    assert layer.log_gain.grad is not None


GRIDS = [
    IntegerGrid.for_activations(4, signed=True),
    IntegerGrid.for_activations(4, signed=False),
    IntegerGrid.unsigned(8),
]


@pytest.mark.parametrize("grid", GRIDS, ids=["signed", "unsigned", "wide"])
def test_at_the_start_a_learned_scale_is_the_quantizer(grid: IntegerGrid) -> None:
    x = torch.linspace(-40, 400, 999)
    quantizer = TensorQuantizer(grid)
    quantizer.scale.fill_(0.7)
    torch.testing.assert_close(LearnedScale(quantizer)(x), quantizer(x), rtol=1e-6, atol=1e-6)
    assert float(LearnedScale(quantizer).scale().detach()) == pytest.approx(0.7, rel=1e-6)


@pytest.mark.parametrize("grid", GRIDS, ids=["signed", "unsigned", "wide"])
def test_gradients_are_those_of_lsq(grid: IntegerGrid) -> None:
    step = 0.5
    x = torch.linspace(-20, 200, 441, requires_grad=True)
    upstream = torch.linspace(-1, 2, 441)
    layer = learned_scale(grid, step)
    (layer(x) * upstream).sum().backward()
    codes = x.detach() / step
    inside = (codes >= grid.quant_min) & (codes <= grid.quant_max)
    # LSQ, equation 3: round(x/s) - x/s inside, the last code outside; times s for log s.
    lsq = torch.where(inside, codes.round() - codes, codes.clamp(grid.quant_min, grid.quant_max))
    assert 0 < int(inside.sum()) < 441
    torch.testing.assert_close(x.grad, upstream * inside)
    expected = float((upstream * lsq).sum() * step)
    assert float(layer.log_scale.grad) == pytest.approx(expected, rel=1e-4)


def test_beyond_the_grid_the_gradient_is_the_slope() -> None:
    x, small = torch.tensor([30.0, -25.0, 90.0]), 1e-3
    weights = torch.tensor([1.0, -2.0, 0.5])

    def value(log_scale: float) -> float:
        layer = learned_scale(GRIDS[0], math.exp(log_scale))
        return float((layer(x) * weights).sum().detach())

    layer = learned_scale(GRIDS[0], 1.5)
    (layer(x) * weights).sum().backward()
    slope = (value(math.log(1.5) + small) - value(math.log(1.5) - small)) / (2 * small)
    assert float(layer.log_scale.grad) == pytest.approx(slope, rel=1e-3)


def test_a_learned_scale_stays_positive() -> None:
    layer = learned_scale(GRIDS[0], 1.0)
    layer.log_scale.data.fill_(-1000.0)
    assert float(layer.scale().detach()) > 0


def lopsided_parts(bits: int = 4) -> tuple[torch.Tensor, torch.Tensor, TensorQuantizer]:
    """As `parts`, with a zero point for each channel."""
    weight, bias, _ = parts(bits)
    weight += torch.linspace(-1, 2, CHANNELS).view(-1, 1, 1, 1) * weight.abs()
    quantizer = TensorQuantizer(IntegerGrid.unsigned(bits), num_channels=CHANNELS, axis=0)
    low, high = weight.flatten(1).aminmax(dim=1)
    quantizer.set_range(low.clamp(max=0), high.clamp(min=0))
    return weight, bias, quantizer


@every_rounding
def test_codes_of_a_weight_with_zero_points_stay_on_its_grid(rounding: Rounding) -> None:
    weight, bias, quantizer = lopsided_parts()
    assert quantizer.zero_point.unique().numel() > 2
    layer = LearnedLayer(weight, bias, quantizer, AFFINES["identity"], rounding)
    assert torch.equal(layer.folded()[0], quantizer.quantize(weight).float())
    disturb(layer)
    codes, scale, _ = layer.folded()
    low, high = (multiple.view(-1, 1, 1, 1) for multiple in quantizer.multiples)
    assert ((codes >= low) & (codes <= high)).all()
    assert (scale > 0).all()
    if rounding == "ste":
        assert (codes == low).any()
        assert (codes == high).any()


@pytest.mark.parametrize("bits", [8, 4])
def test_a_learned_scale_keeps_the_zero_point(bits: int) -> None:
    quantizer, x = TensorQuantizer(IntegerGrid.unsigned(bits)), torch.linspace(-2, 4, 999)
    quantizer.set_range(torch.tensor(-0.3), torch.tensor(2.0))
    layer = LearnedScale(quantizer)
    torch.testing.assert_close(layer(x), quantizer(x), rtol=1e-6, atol=1e-6)
    layer.log_scale.data += 0.1
    quantizer.scale.copy_(layer.scale().detach())
    torch.testing.assert_close(layer(x), quantizer(x), rtol=1e-6, atol=1e-6)
    lowest = float(-quantizer.zero_point * quantizer.scale)
    assert float(layer(x).detach().min()) == pytest.approx(lowest)


def test_straight_through_a_quantizer_stays_and_the_gradient_passes() -> None:
    quantizer = LogSqrt2Quantizer(IntegerGrid.unsigned(4))
    quantizer.set_amax(torch.tensor(0.8))
    x = torch.logspace(-5, 0, 50).requires_grad_()
    layer, upstream = StraightThrough(quantizer), torch.linspace(-1, 1, 50)
    result = layer(x)
    torch.testing.assert_close(result.detach(), quantizer(x.detach()), rtol=1e-6, atol=1e-7)
    (result * upstream).sum().backward()
    assert torch.equal(x.grad, upstream)
    assert list(layer.parameters()) == []


def test_what_is_kept_stays_float_and_has_no_part_in_the_gradient_of_the_scale() -> None:
    quantizer = TensorQuantizer(IntegerGrid.unsigned(4))
    quantizer.set_range(torch.tensor(-0.3), torch.tensor(2.0))
    layer, upstream = LearnedScale(quantizer), torch.linspace(-1, 1, 99)
    x, kept = torch.linspace(-2, 4, 99).requires_grad_(), torch.arange(99) % 3 == 0
    result = layer(x, kept)
    assert torch.equal(result[kept], x[kept])
    torch.testing.assert_close(result[~kept], quantizer(x)[~kept], rtol=1e-6, atol=1e-6)
    (gradient_x, gradient_scale) = torch.autograd.grad(
        (result * upstream).sum(), (x, layer.log_scale)
    )
    assert torch.equal(gradient_x[kept], upstream[kept])
    own_x, own_scale = torch.autograd.grad(
        (layer(x[~kept]) * upstream[~kept]).sum(), (x, layer.log_scale)
    )
    assert torch.equal(gradient_x[~kept], own_x[~kept])
    torch.testing.assert_close(gradient_scale, own_scale, rtol=1e-5, atol=1e-5)
