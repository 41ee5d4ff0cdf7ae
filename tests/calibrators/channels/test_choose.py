"""Which channels get factors: those of tensors with one wide channel, where the layers behind gain."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from reptrt.calibrators.channels.choose import choose_factors
from reptrt.calibrators.channels.rewrite import scale_channels
from reptrt.calibrators.channels.sites import column_sizes
from reptrt.calibrators.histogram.methods import MinMaxCalibrator
from reptrt.calibrators.output_noise import decibel, output_noise
from reptrt.calibrators.quantized.quantized_model import QuantizedModel
from reptrt.calibrators.quantized.run_nodes import float_copy
from reptrt.models.graph import trace
from tests.placing import Network, conv
from tests.tiny_networks import SIZE, quantized, randomize, smooth_images

IMAGES = [smooth_images(16, seed=seed) for seed in (1, 2)]


def model(widest: float, activation: str = "hardswish") -> QuantizedModel:
    """A dense and a depthwise layer behind channels of which one is `widest` times as wide."""

    def forward(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        act = getattr(nn.functional, activation)
        x = act(net.dense(act(net.first(x))))
        return net.last(net.depthwise(x))

    net = Network(
        forward,
        first=conv(3, 16, 3),
        dense=conv(16, 16),
        depthwise=nn.Conv2d(16, 16, 3, padding=1, groups=16),
        last=conv(16, 4),
    )
    randomize(net)
    with torch.no_grad():
        for front, behind in ((net.first, net.dense), (net.dense, net.depthwise)):
            front.weight[0] *= widest
            (behind.weight[:, 0] if behind is net.dense else behind.weight[0]).div_(widest)
    return quantized(trace(net, (SIZE, SIZE)))


def snr(network: QuantizedModel) -> float:
    reference = float_copy(network)
    MinMaxCalibrator().calibrate(network, IMAGES)
    return decibel(output_noise(network, IMAGES, reference))


@pytest.mark.parametrize("activation", ["hardswish", "relu"])
def test_a_wide_channel_costs_the_others_nothing_any_more(activation: str) -> None:
    plain, scaled = model(100, activation), model(100, activation)
    found = choose_factors(scaled, IMAGES)
    wide = {name: factor for name, factor in found.items() if name.startswith(activation)}
    assert len(wide) == 2
    for factor in wide.values():
        assert int(factor.argmax()) == 0
        assert float(factor.max()) == pytest.approx(1)
        assert float(factor.min()) >= 1e-3
    scale_channels(scaled, found)
    before, after = snr(plain), snr(scaled)
    assert before < 10
    assert after > before + 20


def test_channels_that_are_alike_get_none() -> None:
    found = choose_factors(model(1), IMAGES, product_gain=6.0)
    assert not [name for name in found if name.startswith("hardswish")]


def test_what_costs_an_operator_has_to_gain_more() -> None:
    network = model(100)
    assert "hardswish" not in choose_factors(network, IMAGES, product_gain=100.0)
    assert "relu" in choose_factors(model(100, "relu"), IMAGES, product_gain=100.0)


def test_the_model_is_left_as_it_is_and_the_same_images_give_the_same() -> None:
    network = model(100)
    before = {name: tensor.clone() for name, tensor in network.graph_module.state_dict().items()}
    first, second = choose_factors(network, IMAGES), choose_factors(network, IMAGES)
    assert all(torch.equal(first[name], second[name]) for name in (*first, *second))
    after = network.graph_module.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_a_channel_that_few_images_make_wide_is_seen() -> None:
    """Of small images more are looked at: here 32 have nothing red, and channel 0 sees red alone."""
    network = model(1)
    weight = network.weight_of("first").data
    weight[:, 0] = 0
    weight[0] = 0
    weight[0, 0] = 100
    images = [smooth_images(32, seed=seed) for seed in range(4)]
    for plain in images[::2]:
        plain[:, 0] = 0
    found = choose_factors(network, images)
    assert int(found["hardswish"].argmax()) == 0


def test_a_tensor_of_zeros_gets_none() -> None:
    network = model(100)
    for parameter in network.graph_module.parameters():
        parameter.data.zero_()
    assert choose_factors(network, IMAGES) == {}


def test_progress_reaches_its_end() -> None:
    seen: list[tuple[str, int, int]] = []
    choose_factors(model(100), IMAGES, progress=lambda *step: seen.append(step))
    assert seen[-1] == ("scale channels", 4, 4)


def test_the_size_of_a_column_is_its_largest_weight_beside_that_of_the_row() -> None:
    dense = torch.tensor([[4.0, -1.0, 0.0], [0.5, 0.25, 0.0], [0.0, 0.0, 0.0]])
    assert column_sizes(dense, 1).tolist() == [1.0, 0.5, 0.0]
    grouped = torch.tensor([[[2.0], [1.0]], [[-3.0], [6.0]]])  # two groups of two channels
    assert column_sizes(grouped, 2).tolist() == [1.0, 0.5, 0.5, 1.0]
    assert column_sizes(torch.rand(5, 1, 3, 3) + 0.1, 5).tolist() == [1.0] * 5


def test_channels_scaled_up_behind_which_weights_are_scaled_down_cost_nothing() -> None:
    """Widths that differ from channel to channel with weights that do not, and a few that were planted."""

    def network(factor: float) -> QuantizedModel:
        net = Network(
            lambda net, x: net.last(torch.nn.functional.relu(net.first(x))),
            first=conv(3, 32),
            last=conv(32, 8),
        )
        randomize(net)
        with torch.no_grad():
            net.first.weight.mul_(torch.logspace(-1.5, 0, 32).view(-1, 1, 1, 1))
            net.first.weight[::8] *= factor
            net.last.weight[:, ::8] /= factor
        return quantized(trace(net, (SIZE, SIZE)))

    found = []
    for factor in (1.0, 30.0):
        model = network(factor)
        scale_channels(model, choose_factors(model, IMAGES))
        found.append(snr(model))
    assert found[1] > found[0] - 1.5


@pytest.mark.parametrize(("read", "gains"), [("narrow", True), ("wide", False)])
def test_an_error_counts_by_how_much_the_outputs_depend_on_its_channel(
    read: str, gains: bool
) -> None:
    def forward(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return net.last(net.depthwise(nn.functional.hardswish(net.first(x))))

    depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
    net = randomize(Network(forward, first=conv(3, 16, 3), depthwise=depthwise, last=conv(16, 4)))
    with torch.no_grad():
        net.first.weight[0] *= 100
        rows = slice(1, None) if read == "wide" else slice(0, 1)
        net.last.weight[:, rows] = 0
    found = choose_factors(quantized(trace(net, (SIZE, SIZE))), IMAGES)
    assert any(name.startswith("hardswish") for name in found) == gains
