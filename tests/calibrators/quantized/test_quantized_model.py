from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from reptrt.calibrators.histogram.methods import MinMaxCalibrator
from reptrt.calibrators.quantized.channel_affine import ChannelAffine
from reptrt.calibrators.quantized.placement import place_quantizers
from reptrt.calibrators.quantized.quantized_model import QuantizedModel, insert_quantizers
from reptrt.calibrators.quantized.quantizers import Fp8Quantizer, LogSqrt2Quantizer, TensorQuantizer
from reptrt.models.expand_attention import expand_attention
from reptrt.models.graph import trace
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
            return torch.maximum(self.a(x), self.b(x))

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


def with_outer_bits(graph_module: fx.GraphModule, first_last_bits: int | None) -> QuantizedModel:
    return insert_quantizers(
        graph_module,
        place_quantizers(graph_module.graph),
        weight_bits=6,
        activation_bits=6,
        first_last_bits=first_last_bits,
    )


def bits_of(model: QuantizedModel) -> tuple[dict[str, int], dict[str, int]]:
    """Bits of weights by layer, and of what each layer reads, through the call it reads it from."""
    weights = {name: q.grid.num_bits for name, q in model.weight_quantizers.items()}
    inputs = {}
    for node in model.graph_module.graph.nodes:
        if node.name in model.placement.layers:
            source = node.args[0]
            while source.op != "call_module":
                first = source.args[0]
                source = first if isinstance(first, fx.Node) else first[0]
            inputs[model.placement.layers[node.name]] = model.quantizer_at(source).grid.num_bits
    return weights, inputs


def test_the_first_and_the_last_layer_keep_8_bits_where_asked() -> None:
    weights, inputs = bits_of(with_outer_bits(traced("reparameterized"), 8))
    expected = {"0.rbr_reparam": 8, "1.rbr_reparam": 6, "2.reparam_conv": 6}
    assert weights == inputs == {**expected, "3.reparam_conv": 6, "6": 8}


@pytest.mark.parametrize(("least", "expected"), [(8, 8), (4, 6), (None, 6)])
def test_depthwise_weights_keep_8_bits_where_asked_and_their_inputs_do_not(
    least: int | None, expected: int
) -> None:
    graph_module = traced("reparameterized")
    model = insert_quantizers(
        graph_module,
        place_quantizers(graph_module.graph),
        weight_bits=6,
        activation_bits=6,
        depthwise_bits=least,
    )
    weights, inputs = bits_of(model)
    assert model.weight_of("2.reparam_conv").shape[1] == 1
    assert weights == {**dict.fromkeys(weights, 6), "2.reparam_conv": expected}
    assert set(inputs.values()) == {6}


@pytest.mark.parametrize("bits", [None, 4], ids=["none", "fewer"])
def test_without_more_bits_for_them_they_are_like_the_others(bits: int | None) -> None:
    for found in bits_of(with_outer_bits(traced("reparameterized"), bits)):
        assert set(found.values()) == {6}


def test_every_last_layer_of_a_detector_counts_and_no_other_one() -> None:
    weights, inputs = bits_of(with_outer_bits(traced("detector"), 8))
    outer = {"stem.rbr_reparam", "heads.0", "heads.1"}
    assert {name for name, bits in weights.items() if bits == 8} == outer
    assert set(weights.values()) == {6, 8}
    assert inputs["stem.rbr_reparam"] == inputs["heads.0"] == 8
    assert inputs["mix.rbr_reparam"] == inputs["down.rbr_reparam"] == 6


def test_a_transformers_patches_and_head_are_its_outer_layers() -> None:
    weights, inputs = bits_of(with_outer_bits(traced("vit"), 8))
    assert {name for name, bits in weights.items() if bits == 8} == {"patch_embed.proj", "head"}
    assert {name for name, bits in inputs.items() if bits == 8} == {"patch_embed.proj", "head"}


def test_a_last_layer_behind_a_pooling_or_a_concat_reads_8_bits_too() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
            self.last = nn.Conv2d(8, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = F.relu(self.a(x))
            z = F.relu(self.b(y))
            return self.last(F.max_pool2d(torch.cat([z, 2 * z], 1), 2))

    weights, inputs = bits_of(with_outer_bits(trace(Pooled().eval(), (8, 8)), 8))
    assert weights == {"a": 8, "b": 6, "last": 8}
    assert inputs == {"a": 8, "b": 6, "last": 8}


def test_affine_maps_of_branches_are_kept() -> None:
    graph_module = traced("plain")
    affines = {"0": ChannelAffine.identity(8)}
    placement = place_quantizers(graph_module.graph)
    assert (
        insert_quantizers(graph_module, placement, branch_affines=affines).branch_affines == affines
    )
    assert quantized(traced("plain")).branch_affines == {}


def test_a_quantizer_is_found_by_its_call_and_by_its_path() -> None:
    model = calibrated("detector")
    for layer, quantizer in model.weight_quantizers.items():
        assert model.graph_module.get_submodule(model.weight_target(layer)) is quantizer
        assert {model.quantizer_at(call) is quantizer for call in calls_of(model, quantizer)} == {
            True
        }


def test_attention_has_the_bits_of_the_others_and_its_probabilities_the_grid_asked_for() -> None:
    for softmax, kind in (("uniform", TensorQuantizer), ("log2", LogSqrt2Quantizer)):
        graph_module = traced("vit")
        expand_attention(graph_module)
        model = insert_quantizers(
            graph_module,
            place_quantizers(graph_module.graph, softmax=softmax),
            activation_bits=4,
            first_last_bits=8,
        )
        quantizers = model.activation_quantizers
        (site,) = model.placement.attention
        names = (site.query, site.key, site.probabilities, site.value)
        assert {quantizers[name].grid.num_bits for name in names} == {4}
        kinds = {name: type(quantizer) for name, quantizer in quantizers.items()}
        assert kinds.pop(site.probabilities) is kind
        assert set(kinds.values()) == {TensorQuantizer}
    assert quantizers[site.probabilities].grid.quant_max == 15


def test_fp8_is_for_all_operands_of_attention_and_for_nothing_else() -> None:
    graph_module = traced("vit")
    expand_attention(graph_module)
    placement = place_quantizers(graph_module.graph, softmax="fp8")
    quantizers = insert_quantizers(graph_module, placement, activation_bits=4).activation_quantizers
    fp8 = {name for name, one in quantizers.items() if isinstance(one, Fp8Quantizer)}
    (site,) = placement.attention
    assert fp8 == set(site.points)
    assert len(fp8) == 4


def test_a_quantized_linear_without_a_bias_gets_one_of_zeros() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1, bias=False)
            self.twice = nn.Linear(8, 8, bias=False)
            self.last = nn.Linear(8, 2)
            self.odd_weight = nn.Parameter(torch.ones(8, 8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = F.linear(self.twice(self.twice(self.conv(x))), self.odd_weight)
            return self.last(F.linear(y, self.last.weight).repeat(1, 1, 1, 4))

    module, images = Shared().eval(), smooth_images(2, seed=0, size=8)
    model = quantized(trace(module, (8, 8)))
    state = model.graph_module.state_dict()
    for name in ("twice.bias", "odd_bias"):
        assert torch.equal(state[name], torch.zeros(8))
        assert not model.graph_module.get_parameter(name).requires_grad
    assert "conv.bias" not in state
    assert torch.equal(state["last.bias"], module.last.bias)  # a name that is taken
    with model.float_mode():
        torch.testing.assert_close(model(images)[0], module(images))
