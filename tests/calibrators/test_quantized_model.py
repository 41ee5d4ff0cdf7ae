from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from calibrators.baselines import MinMaxCalibrator
from calibrators.quantized_model import QuantizedModel
from models.graph import trace
from tests.tiny_networks import NETWORKS, calibrated, quantized, smooth_images, traced


def calls_of(model: QuantizedModel, quantizer: nn.Module) -> list[fx.Node]:
    graph_module = model.graph_module
    return [
        node
        for node in graph_module.graph.nodes
        if node.op == "call_module" and graph_module.get_submodule(node.target) is quantizer
    ]


@pytest.mark.parametrize("name", NETWORKS)
def test_float_mode_is_the_float_network_to_the_bit_and_is_undone(name: str) -> None:
    model, images = quantized(traced(name)), smooth_images(4, seed=2)
    for quantizer in (*model.activation_quantizers.values(), *model.weight_quantizers.values()):
        quantizer.scale.fill_(0.1)
    reference = traced(name)(images)
    reference = reference if isinstance(reference, tuple) else (reference,)
    before = model(images)
    with model.float_mode():
        inside = model(images)
    assert all(torch.equal(a, b) for a, b in zip(inside, reference, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(model(images), before, strict=True))
    assert not torch.equal(before[0], reference[0])


def test_float_mode_is_undone_after_an_error_and_keeps_what_was_disabled() -> None:
    model = calibrated("plain")
    quantizers = [*model.activation_quantizers.values(), *model.weight_quantizers.values()]
    quantizers[0].enabled = False

    def fail_inside() -> None:
        with model.float_mode():
            assert not any(quantizer.enabled for quantizer in quantizers)
            model(torch.zeros(1, 1, 1, 1))

    with pytest.raises(RuntimeError):
        fail_inside()
    assert [quantizer.enabled for quantizer in quantizers] == [False] + [True] * (
        len(quantizers) - 1
    )


def test_a_concat_reads_all_its_inputs_through_one_quantizer() -> None:
    model = calibrated("detector")
    concats = [n for n in model.graph_module.graph.nodes if n.target is torch.ops.aten.cat.default]
    assert len(concats) == 2
    mixed = concats[1]
    sources = mixed.args[0]
    quantizers = set()
    for source in sources:
        while source.op != "call_module":  # through the nearest upsampling
            source = source.args[0]
        quantizers.add(model.graph_module.get_submodule(source.target))
    assert len(sources) == 3
    assert len(quantizers) == 1


def test_the_shared_scale_of_a_concat_covers_its_largest_input() -> None:
    class Join(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(6, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(torch.cat([x.abs(), (3 * x).sin() * 20], 1))

    images = smooth_images(4, seed=0, size=8)
    model = quantized(trace(Join(), (8, 8)))
    MinMaxCalibrator().calibrate(model, [images])
    (quantizer,) = model.activation_quantizers.values()
    amax = max(float(images.abs().max()), float((20 * (3 * images).sin()).abs().max()))
    assert float(quantizer.scale) == pytest.approx(amax / 127, rel=1e-6)


def test_a_tensor_with_two_readers_is_quantized_once() -> None:
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a(x) + self.b(x)

    model = quantized(trace(Fork(), (8, 8)))
    (quantizer,) = model.activation_quantizers.values()
    (call,) = calls_of(model, quantizer)
    assert len(call.users) == 2


def test_a_shared_weight_has_one_quantizer_and_two_calls() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(F.relu(self.conv(x)))

    model = quantized(trace(Twice(), (8, 8)))
    assert list(model.weight_quantizers) == ["conv"]
    assert len(calls_of(model, model.weight_quantizers["conv"])) == 2
    assert len(model.activation_quantizers) == 2


def test_layers_whose_paths_differ_only_in_dots_keep_their_own_quantizers() -> None:
    class Confusing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Sequential(nn.Conv2d(3, 4, 1))
            self.block_0 = nn.Conv2d(4, 6, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.block_0(F.relu(self.block(x)))

    model = quantized(trace(Confusing(), (8, 8)))
    MinMaxCalibrator().calibrate(model, [smooth_images(2, seed=0, size=8)])
    assert {name: q.scale.numel() for name, q in model.weight_quantizers.items()} == {
        "block.0": 4,
        "block_0": 6,
    }
    with torch.no_grad():
        assert model(smooth_images(2, seed=0, size=8))[0].shape == (2, 6, 8, 8)
    assert all(len(calls_of(model, q)) == 1 for q in model.weight_quantizers.values())


def test_a_quantized_weight_is_found_by_the_name_of_its_layer() -> None:
    model = calibrated("reparameterized")
    for layer, quantizer in model.weight_quantizers.items():
        weight = model.weight_of(layer)
        assert quantizer.scale.shape == (weight.shape[0],)
        assert int(quantizer.quantize(weight).abs().max()) == 127


def test_outputs_are_a_tuple_even_when_there_is_one() -> None:
    assert len(calibrated("plain")(smooth_images(2, seed=0))) == 1
    assert len(calibrated("detector")(smooth_images(2, seed=0))) == 2


def test_bits_reach_weights_and_activations() -> None:
    model = calibrated("plain", bits=(4, 6))
    assert {q.grid.num_bits for q in model.weight_quantizers.values()} == {4}
    assert {q.grid.num_bits for q in model.activation_quantizers.values()} == {6}
    images = smooth_images(4, seed=2)
    seen: list[int] = []
    for quantizer in model.activation_quantizers.values():
        quantizer.register_forward_pre_hook(
            lambda q, x: seen.extend(q.quantize(x[0]).flatten().unique().tolist())
        )
    model(images)
    assert min(seen) >= -32
    assert max(seen) <= 63
