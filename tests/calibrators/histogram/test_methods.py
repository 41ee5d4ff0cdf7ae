from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from reptrt.calibrators.base import Batches
from reptrt.calibrators.histogram.methods import (
    HistogramCalibrator,
    channel_amax,
    clip_weights,
    observe_activations,
)
from reptrt.calibrators.histogram.observers import HistogramObserver, ObservationError
from reptrt.calibrators.quantized.quantizers import IntegerGrid
from reptrt.calibrators.registry import create_calibrator
from reptrt.models.graph import trace
from tests.tiny_networks import quantized, randomize, smooth_images, traced

SIGNED = IntegerGrid.for_activations(8, signed=True)
BASELINES = ("minmax", "percentile", "entropy", "mse", "mae")


class Stream:
    """Images made anew on each pass, one batch alive at a time."""

    def __init__(self, make: Callable[[int], torch.Tensor], length: int) -> None:
        self._make, self._length = make, length
        self.alive: list[int] = []
        self._references: list[weakref.ref[torch.Tensor]] = []

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[torch.Tensor]:
        for index in range(self._length):
            batch = self._make(index)
            self.alive.append(sum(ref() is not None for ref in self._references))
            self._references.append(weakref.ref(batch))
            yield batch
            del batch


def histogram(x: torch.Tensor) -> HistogramObserver:
    observer = HistogramObserver()
    observer.observe(x)
    return observer


def baseline(name: str) -> HistogramCalibrator:
    calibrator = create_calibrator(name)
    assert isinstance(calibrator, HistogramCalibrator)
    return calibrator


def heavy_tailed(seed: int = 0) -> torch.Tensor:
    """Laplace bulk of unit scale with a few values of around 100."""
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(10000, generator=generator) - 0.5
    bulk = -uniform.sign() * torch.log1p(-2 * uniform.abs().clamp(max=0.49999))
    return torch.cat([bulk, 100 + torch.randn(2, generator=generator)])


def error(x: torch.Tensor, amax: float, grid: IntegerGrid, power: float) -> float:
    """Mean |x - quantized x|^power, straight from the definition."""
    scale = amax / grid.quant_max
    codes = torch.clamp(torch.round(x.double() / scale), grid.quant_min, grid.quant_max)
    return float((x.double() - codes * scale).abs().pow(power).mean())


def calibrate(name: str, batches: Batches, network: str = "plain") -> dict[str, torch.Tensor]:
    model = quantized(traced(network), bits=(8, 6))
    create_calibrator(name).calibrate(model, batches)
    return {
        key: value.clone()
        for key, value in model.graph_module.state_dict().items()
        if key.endswith(".scale")
    }


def test_min_max_keeps_the_largest_magnitude() -> None:
    assert baseline("minmax").choose_amax(histogram(torch.tensor([1.0, -7.5])), SIGNED) == 7.5


def test_the_percentile_of_a_uniform_distribution_is_known() -> None:
    x = torch.linspace(0, 10, 1_000_001)
    assert baseline("percentile").choose_amax(histogram(x), SIGNED) == pytest.approx(
        9.999, abs=2 * 10 / 65536
    )


def test_the_percentile_drops_one_outlier_in_a_hundred_thousand_but_not_one_in_a_hundred() -> None:
    x = torch.linspace(0, 1, 100_000)
    choose = baseline("percentile").choose_amax
    assert choose(histogram(torch.cat([x, torch.tensor([50.0])])), SIGNED) < 1.01
    assert choose(histogram(torch.cat([x[:100], torch.tensor([50.0])])), SIGNED) == 50.0


@pytest.mark.parametrize(("name", "power"), [("mse", 2.0), ("mae", 1.0)])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("signed", [True, False])
def test_the_clip_with_the_least_error_is_near_a_brute_force_optimum(
    name: str, power: float, bits: int, signed: bool
) -> None:
    x = heavy_tailed() if signed else heavy_tailed().abs()
    grid = IntegerGrid.for_activations(bits, signed=signed)
    chosen = baseline(name).choose_amax(histogram(x), grid)
    clips = torch.logspace(-0.5, 2.02, 300).tolist()
    assert error(x, chosen, grid, power) <= 1.02 * min(error(x, c, grid, power) for c in clips)


@pytest.mark.parametrize("bits", [4, 8])
def test_absolute_error_clips_more_than_squared_error(bits: int) -> None:
    grid = IntegerGrid.for_activations(bits, signed=True)
    seen = histogram(heavy_tailed())
    mse, mae = (baseline(name).choose_amax(seen, grid) for name in ("mse", "mae"))
    assert mae < 0.7 * mse
    assert mse < seen.amax


def test_without_outliers_nothing_but_rounding_is_clipped() -> None:
    x = torch.linspace(-1, 1, 100_001)
    for name in BASELINES:
        assert baseline(name).choose_amax(histogram(x), SIGNED) == pytest.approx(1.0, rel=0.07)


def test_least_divergence_cuts_outliers_and_keeps_the_bulk() -> None:
    bulk = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    x = torch.cat([bulk, torch.full((10,), 60.0)])
    assert 2.5 < baseline("entropy").choose_amax(histogram(x), SIGNED) < 10
    assert baseline("entropy").choose_amax(histogram(bulk), SIGNED) > 2.5


def test_exact_zeros_do_not_move_the_clip_of_least_divergence() -> None:
    x = torch.randn(20_000, generator=torch.Generator().manual_seed(0)).relu()
    choose = baseline("entropy").choose_amax
    assert choose(histogram(torch.cat([x, torch.zeros(200_000)])), SIGNED) == choose(
        histogram(x[x > 0]), SIGNED
    )


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_clip_is_never_above_the_largest_magnitude(name: str, bits: int) -> None:
    for signed in (True, False):
        grid = IntegerGrid.for_activations(bits, signed=signed)
        for x in (heavy_tailed().abs(), torch.tensor([0.25]), torch.rand(50)):
            amax = baseline(name).choose_amax(histogram(x), grid)
            assert 0 < amax <= float(x.max()) * (1 + 1e-6)


@pytest.mark.parametrize("name", BASELINES)
def test_a_dead_activation_gets_a_positive_scale(name: str) -> None:
    module = randomize(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)))
    nn.init.constant_(module[0].bias, -1e6)
    model = quantized(trace(module, (8, 8)))
    create_calibrator(name).calibrate(model, [smooth_images(2, seed=0, size=8)])
    scales = [float(q.scale) for q in model.activation_quantizers.values()]
    assert scales[1] == 1.0
    assert torch.isfinite(model(smooth_images(2, seed=1, size=8))[0]).all()


def test_weights_are_scaled_per_output_channel() -> None:
    weight = torch.tensor([[[[1.0, -3.0]]], [[[0.5, 0.25]]], [[[0.0, 0.0]]]])
    assert channel_amax(weight).tolist() == [3.0, 0.5, 0.0]
    model = quantized(traced("plain"))
    create_calibrator("minmax").calibrate(model, [smooth_images(4, seed=0)])
    for layer, quantizer in model.weight_quantizers.items():
        amax = model.weight_of(layer).detach().abs().flatten(1).amax(1)
        torch.testing.assert_close(quantizer.scale * 127, amax)


def test_min_max_scales_the_input_by_hand() -> None:
    images = smooth_images(4, seed=0)
    model = quantized(traced("plain"))
    create_calibrator("minmax").calibrate(model, list(images.split(2)))
    scale = next(iter(model.activation_quantizers.values())).scale
    assert float(scale) == pytest.approx(float(images.abs().max()) / 127, rel=1e-6)


def test_the_sign_of_a_tensor_chooses_its_grid_below_8_bits() -> None:
    model = quantized(traced("plain"), bits=(8, 4))
    observe_activations(model, [smooth_images(4, seed=0)])
    grids = [(q.grid.quant_min, q.grid.quant_max) for q in model.activation_quantizers.values()]
    assert grids == [(-8, 7), (0, 15), (-8, 7)]  # images, behind a ReLU, behind a SiLU


def test_observation_runs_the_float_network() -> None:
    model = quantized(traced("plain"))
    for quantizer in model.activation_quantizers.values():
        quantizer.set_amax(torch.tensor(1e-3))  # would saturate everything behind it
    expected = observe_activations(quantized(traced("plain")), [smooth_images(4, seed=0)])
    actual = observe_activations(model, [smooth_images(4, seed=0)])
    assert [o.amax for o in actual.values()] == [o.amax for o in expected.values()]


@pytest.mark.parametrize("name", [*BASELINES, "best"])
def test_the_same_images_give_the_same_scales_to_the_bit(name: str) -> None:
    one, other = (calibrate(name, Stream(lambda i: smooth_images(4, seed=i), 3)) for _ in range(2))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert all(bool((scale > 0).all()) for scale in one.values())


@pytest.mark.parametrize("name", ["mae", "best"])
def test_images_are_streamed_one_batch_at_a_time(name: str) -> None:
    stream = Stream(lambda i: smooth_images(4, seed=i), 5)
    calibrate(name, stream)
    assert len(stream.alive) == (9 if name == "best" else 5)  # it compares on four batches
    assert max(stream.alive[:5]) <= 1


@pytest.mark.parametrize("name", BASELINES)
def test_scales_do_not_depend_on_how_images_are_batched(name: str) -> None:
    images = smooth_images(12, seed=0)
    first, rest = images[:4], images[4:]
    one = calibrate(name, [first, rest])
    other = calibrate(name, [first, *rest.split(1)])
    # Convolutions of another batch size may add in another order: one bin at most.
    assert all(torch.allclose(one[key], other[key], rtol=1e-3) for key in one)


def test_progress_counts_every_batch() -> None:
    calls: list[tuple[str, int, int]] = []
    model = quantized(traced("plain"))
    batches = [smooth_images(2, seed=i) for i in range(3)]
    result = create_calibrator("minmax").calibrate(model, batches, lambda *call: calls.append(call))
    assert [call[1:] for call in calls] == [(1, 3), (2, 3), (3, 3)]
    assert result.method == "minmax"


@pytest.mark.parametrize("bits", [2, 4, 6])
def test_the_clip_of_a_weight_is_the_best_of_many(bits: int) -> None:
    model = quantized(traced("reparameterized"), (bits, 8))
    model.graph_module.requires_grad_(False)
    create_calibrator("minmax").calibrate(model, [smooth_images(4, seed=0)])
    full = {name: q.scale.clone() for name, q in model.weight_quantizers.items()}
    clip_weights(model)
    for name, quantizer in model.weight_quantizers.items():
        weight, chosen = model.weight_of(name), quantizer.scale.clone()

        def error() -> torch.Tensor:
            return (quantizer(weight) - weight).square().flatten(1).sum(1)  # noqa: B023  # at once

        least = error()
        for share in (0.3, 0.45, 0.6, 0.75, 0.9, 1.0):
            quantizer.scale.copy_(share * full[name])
            assert bool((least <= error() * (1 + 1e-6)).all())
        assert bool((chosen <= full[name] * (1 + 1e-6)).all())
        assert bool((chosen >= 0.3 * full[name] * (1 - 1e-6)).all())
        assert not torch.equal(chosen, full[name])


def test_a_clip_leaves_8_bits_and_weights_alone() -> None:
    model = quantized(traced("plain"))
    create_calibrator("minmax").calibrate(model, [smooth_images(4, seed=0)])
    before = {k: v.clone() for k, v in model.graph_module.state_dict().items()}
    clip_weights(model)
    assert all(torch.equal(v, before[k]) for k, v in model.graph_module.state_dict().items())


def test_a_dead_channel_survives_a_clip() -> None:
    model = quantized(traced("plain"), (4, 8))
    model.graph_module.requires_grad_(False)
    model.weight_of("0")[1] = 0
    create_calibrator("minmax").calibrate(model, [smooth_images(4, seed=0)])
    clip_weights(model)
    assert float(model.weight_quantizers["0"].scale.min()) > 0
    assert bool(model.weight_quantizers["0"].scale.isfinite().all())


def test_nan_weights_are_reported_in_one_line() -> None:
    module = randomize(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)))
    module[0].weight.data[0, 0] = float("nan")
    model = quantized(trace(module, (8, 8)))
    with pytest.raises(ObservationError) as caught:
        create_calibrator("minmax").calibrate(model, [smooth_images(2, seed=0, size=8)])
    assert "\n" not in str(caught.value)
