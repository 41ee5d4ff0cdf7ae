from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from reptrt.calibrators.quantized.biases import round_biases
from reptrt.calibrators.quantized.half_range import (
    has_shiftable_readers,
    is_shiftable,
    producer_offset,
    real_offset,
    shiftable_points,
)
from reptrt.calibrators.quantized.quantized_model import QuantizedModel
from reptrt.calibrators.quantized.quantizers import IntegerGrid
from reptrt.models.graph import trace
from tests.tiny_networks import quantized, traced


class Layers(nn.Module):
    """Layers that `join` connects; `make` is the ReLU of a depthwise convolution."""

    def __init__(self, join: Callable[[Layers, torch.Tensor], object]) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(3, 3, 3, padding=1, groups=3, bias=False)
        self.pointwise = nn.Conv2d(3, 3, 1)
        self.strided = nn.Conv2d(3, 6, 1, stride=2, groups=3, bias=False)
        self.valid = nn.Conv2d(3, 4, 3)
        self.padded = nn.Conv2d(3, 3, 3, padding=1)
        self.linear = nn.Linear(8, 5)
        self.wide = nn.Conv2d(6, 2, 1)
        self.join = join

    def make(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.depthwise(x))

    def forward(self, x: torch.Tensor) -> object:
        return self.join(self, x)


def points(join: Callable[[Layers, torch.Tensor], object]) -> frozenset[str]:
    model = quantized(trace(Layers(join).eval(), (8, 8)))
    assert any("relu" in tensor for point in model.placement.points for tensor in point.tensors)
    return shiftable_points(model)


def pre_activation_read_twice(m: Layers, x: torch.Tensor) -> torch.Tensor:
    y = m.depthwise(x)
    return m.pointwise(F.relu(y)) + y


def read_in_float_too(m: Layers, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    y = m.make(x)
    return m.pointwise(y), torch.sigmoid(y)


def returned_too(m: Layers, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    y = m.make(x)
    return m.pointwise(y), y


def one_padded_reader(m: Layers, x: torch.Tensor) -> torch.Tensor:
    y = m.make(x)
    return m.pointwise(y) + m.padded(y)


def residual_add(m: Layers, x: torch.Tensor) -> torch.Tensor:
    y = m.make(x)
    return torch.maximum(m.pointwise(y), y)  # a sum would be merged into one layer


def two_unpadded_readers(m: Layers, x: torch.Tensor) -> torch.Tensor:
    y = m.make(x)
    return m.pointwise(y)[:, :, ::2, ::2] + m.strided(y)[:, :3]


@pytest.mark.parametrize(
    "join",
    [
        lambda m, x: m.pointwise(m.make(x)),
        lambda m, x: m.strided(m.make(x)),
        lambda m, x: m.valid(m.make(x)),
        lambda m, x: m.linear(m.make(x)),
        two_unpadded_readers,
    ],
    ids=["pointwise", "strided", "valid", "linear", "two"],
)
def test_a_relu_read_by_unpadded_layers_only_is_shiftable(join: Callable[..., object]) -> None:
    assert points(join) == {"relu"}


@pytest.mark.parametrize(
    "join",
    [
        lambda m, x: m.padded(m.make(x)),
        lambda m, x: m.wide(torch.cat([m.make(x), F.relu(m.pointwise(x))], 1)),
        lambda m, x: m.pointwise(F.max_pool2d(m.make(x), 2)),
        lambda m, x: m.pointwise(F.relu(x)),
        lambda m, x: m.pointwise(F.relu(m.depthwise(x) + x.abs())),
        *(one_padded_reader, residual_add, returned_too, read_in_float_too),
        pre_activation_read_twice,
    ],
    ids=["padded", "concat", "pool", "input", "sum", "one", "skip", "output", "float", "twice"],
)
def test_any_other_relu_is_not_shiftable(join: Callable[..., object]) -> None:
    assert points(join) == frozenset()


@pytest.mark.parametrize(
    ("name", "expected"),
    [("reparameterized", {"relu_2"}), ("plain", set()), ("vit", set()), ("swin", set())],
)
def test_of_a_network_the_depthwise_outputs_before_pointwise_layers_are_shiftable(
    name: str, expected: set[str]
) -> None:
    assert shiftable_points(quantized(traced(name))) == expected


def test_the_real_offset_is_128_steps_of_a_quantizer_that_has_one() -> None:
    model = quantized(trace(Layers(lambda m, x: m.pointwise(m.make(x))).eval(), (8, 8)))
    quantizer = model.activation_quantizers["relu"]
    quantizer.grid = IntegerGrid.unsigned(8)
    quantizer.scale.fill_(0.25)
    graph = model.graph_module.graph
    offsets = {node.name: real_offset(model.graph_module, node) for node in graph.nodes}
    assert [offset for offset in offsets.values() if offset] == [32.0]
    (call,) = [node for node in graph.nodes if offsets[node.name]]
    assert is_shiftable(call)


def test_a_rounded_bias_stays_on_the_accumulators_grid_when_its_reader_absorbs_the_offset() -> None:
    model = quantized(trace(Layers(lambda m, x: m.pointwise(m.make(x))).eval(), (8, 8)))
    model.activation_quantizers["relu"].grid = IntegerGrid.unsigned(8)
    model.activation_quantizers["relu"].scale.fill_(0.03)
    weights = model.weight_quantizers["pointwise"]
    weights.set_amax(torch.tensor([0.3, 0.5, 0.7]))
    round_biases(model)
    absorbed = 128 * 0.03 * weights(model.weight_of("pointwise")).double().flatten(1).sum(1)
    bias = model.graph_module.get_parameter("pointwise.bias").double() + absorbed
    steps = bias / (0.03 * weights.scale.double())
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=0.01)


def test_a_bias_before_an_offset_is_rounded_less_the_offset() -> None:
    model = quantized(trace(Layers(lambda m, x: m.linear(F.relu(m.padded(x)))).eval(), (8, 8)))
    model.activation_quantizers["relu"].grid = IntegerGrid.unsigned(8)
    model.activation_quantizers["relu"].scale.fill_(0.03)
    next(iter(model.activation_quantizers.values())).scale.fill_(0.02)  # of the images
    model.weight_quantizers["padded"].set_amax(torch.tensor([0.3, 0.5, 0.7]))
    before = model.graph_module.get_parameter("padded.bias").double()
    round_biases(model)
    after = model.graph_module.get_parameter("padded.bias").double()
    step = 0.02 * model.weight_quantizers["padded"].scale.double()
    codes = (after - 128 * 0.03) / step
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=0.02)
    assert torch.all((after - before).abs() <= 0.51 * step)


def calls_of(model: QuantizedModel, name: str) -> fx.Node:
    (call,) = (n for n in model.graph_module.graph.nodes if str(n.target).endswith(f"s.{name}"))
    return call


@pytest.mark.parametrize(
    ("join", "expected"),
    [
        (lambda m, x: m.pointwise(F.gelu(m.padded(x))), True),
        (lambda m, x: m.pointwise(F.gelu(x)), True),
        (lambda m, x: m.linear(F.gelu(x)) + m.linear(F.gelu(x)), True),
        (lambda m, x: m.padded(F.gelu(x)), False),
        (lambda m, x: m.pointwise(F.max_pool2d(F.gelu(x), 2)), False),
        (lambda m, x: torch.maximum(y := F.gelu(x), m.pointwise(y)), False),
    ],
    ids=["layer", "input", "two", "padded", "pool", "skip"],
)
def test_readers_alone_decide_whether_a_subtraction_can_be_made_up_for(
    join: Callable[..., object], expected: bool
) -> None:
    model = quantized(trace(Layers(join).eval(), (8, 8)))
    call = calls_of(model, "gelu")
    assert has_shiftable_readers(call) == expected
    assert not is_shiftable(call)


def test_a_zero_point_makes_an_offset_that_no_producer_takes() -> None:
    model = quantized(trace(Layers(lambda m, x: m.pointwise(m.make(x))).eval(), (8, 8)))
    quantizer, call = model.activation_quantizers["relu"], calls_of(model, "relu")
    quantizer.grid = IntegerGrid.unsigned(8)
    quantizer.set_range(torch.tensor(0.0), torch.tensor(2.55))
    assert producer_offset(model.graph_module, call) == pytest.approx(1.28)
    quantizer.set_range(torch.tensor(-0.2), torch.tensor(2.35))
    assert real_offset(model.graph_module, call) == pytest.approx(1.08)
    assert producer_offset(model.graph_module, call) == 0
    quantizer.set_range(torch.tensor(-1.28), torch.tensor(1.27))
    assert real_offset(model.graph_module, call) == 0


def test_a_bias_before_a_zero_point_is_rounded_as_it_is() -> None:
    model = quantized(trace(Layers(lambda m, x: m.linear(F.relu(m.padded(x)))).eval(), (8, 8)))
    quantizer = model.activation_quantizers["relu"]
    quantizer.grid = IntegerGrid.unsigned(8)
    quantizer.set_range(torch.tensor(-0.2), torch.tensor(2.35))
    next(iter(model.activation_quantizers.values())).scale.fill_(0.02)  # of the images
    model.weight_quantizers["padded"].set_amax(torch.tensor([0.3, 0.5, 0.7]))
    round_biases(model)
    step = 0.02 * model.weight_quantizers["padded"].scale.double()
    codes = model.graph_module.get_parameter("padded.bias").double() / step
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=0.01)
