from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from reptrt.calibrators.quantized.find_attention import Softmax
from reptrt.calibrators.quantized.quantized_model import QuantizedModel, is_activation_call
from reptrt.calibrators.quantized.run_nodes import float_overrides, run_nodes
from reptrt.calibrators.reconstruction.blocks import (
    Block,
    UnknownBlockError,
    compared_outputs,
    find_blocks,
    rest_of_stage,
)
from reptrt.calibrators.settings import Units
from reptrt.models.graph import trace
from tests.reconstructing import placeholder, run_blocks
from tests.tiny_networks import NETWORKS, calibrated, quantized, smooth_images, traced
from tests.tiny_transformers import images_for, transformer


def layers(found: list[Block]) -> list[list[str]]:
    return [list(block.layers.values()) for block in found]


def names(nodes: tuple[fx.Node, ...]) -> set[str]:
    return {node.name for node in nodes}


def sizes(*strides: int) -> QuantizedModel:
    module = nn.Sequential(*(nn.Conv2d(3, 3, 3, stride=s, padding=1) for s in strides))
    return quantized(trace(module.eval(), (16, 16)))


@pytest.mark.parametrize(
    ("batch_size", "units"), [(None, "layers"), (4, "layers"), (None, "chains")]
)
@pytest.mark.parametrize("name", NETWORKS)
def test_block_after_block_computes_what_the_whole_network_does(
    name: str, batch_size: int | None, units: Units
) -> None:
    model, images = calibrated(name, (6, 6), batch_size), smooth_images(4, seed=3)
    with torch.no_grad():
        expected = model(images)
        with model.float_mode():
            expected_float = model(images)
    assert not torch.equal(expected[0], expected_float[0])
    found, found_float = (
        run_blocks(model, images, overrides, units) for overrides in ({}, float_overrides(model))
    )
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(found_float, expected_float, strict=True))


@pytest.mark.parametrize("softmax", ["uniform", "log2"])
@pytest.mark.parametrize("name", ["vit", "swin"])
def test_quantized_attention_changes_no_block(name: str, softmax: Softmax) -> None:
    model, images = calibrated(name, (6, 6), softmax=softmax), smooth_images(4, seed=3)
    assert layers(find_blocks(model)) == layers(find_blocks(calibrated(name, (6, 6))))
    with torch.no_grad():
        expected = model(images)
    assert torch.equal(run_blocks(model, images, {})[0], expected[0])


def test_the_parts_of_a_split_cross_a_border_and_the_split_does_not() -> None:
    class Split(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
            self.c, self.d = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 4, 1)
            self.e = nn.Conv2d(4, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.a(x)
            joined = torch.cat([y, self.b(y)], 1)
            first, second = joined.chunk(2, 1)
            return self.c(joined) + self.d(first) + self.e(second)

    model, images = quantized(trace(Split().eval(), (8, 8))), smooth_images(2, seed=0, size=8)
    with torch.no_grad():
        assert torch.equal(run_blocks(model, images, {})[0], model(images)[0])
    crossing = [node for block in find_blocks(model) for node in block.inputs]
    assert len(crossing) > 5
    assert all(isinstance(node.meta["val"], torch.Tensor) for node in crossing)


@pytest.mark.parametrize("units", ["layers", "chains"])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_and_every_quantizer_is_in_exactly_one_block(name: str, units: Units) -> None:
    model = quantized(traced(name))
    found = find_blocks(model, units=units)
    assert Counter(n for b in found for n in b.layers) == Counter(model.placement.layers.keys())
    computed = Counter(node for block in found for node in block.nodes)
    assert set(computed.values()) == {1}
    calls = {node for node in model.graph_module.graph.nodes if is_activation_call(node)}
    assert calls
    assert calls <= set(computed)
    assert [b.name for b in found] == [next(iter(b.layers.values())) for b in found]


@pytest.mark.parametrize("units", ["layers", "chains"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_quantizer_belongs_to_its_first_reader(name: str, units: Units) -> None:
    found = find_blocks(quantized(traced(name)), units=units)
    owner = {node: index for index, block in enumerate(found) for node in block.nodes}
    for node, index in owner.items():
        if is_activation_call(node):
            assert index == min(owner[user] for user in node.users)


@pytest.mark.parametrize("units", ["layers", "chains"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_block_reads_what_earlier_blocks_return(name: str, units: Units) -> None:
    model = quantized(traced(name))
    known = {placeholder(model)}
    stages = []
    for block in find_blocks(model, units=units):
        assert set(block.inputs) <= known
        assert not set(block.inputs) & set(block.nodes)
        known |= set(block.outputs)
        stages.append(block.stage)
    assert stages[0] == 0
    assert {after - before for before, after in pairwise(stages)} <= {0, 1}


def test_a_depthwise_convolution_and_the_pointwise_one_behind_it_are_one_block() -> None:
    assert layers(find_blocks(quantized(traced("reparameterized")))) == [
        ["0.rbr_reparam"],
        ["1.rbr_reparam"],
        ["2.reparam_conv", "3.reparam_conv"],
        ["6"],
    ]


def test_a_depthwise_convolution_that_something_else_reads_too_is_a_block_of_its_own() -> None:
    class Forked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.depthwise = nn.Conv2d(3, 3, 3, padding=1, groups=3)
            self.pointwise = nn.Conv2d(3, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.depthwise(x)
            return self.pointwise(F.relu(y)) + y

    assert layers(find_blocks(quantized(trace(Forked(), (8, 8))))) == [["depthwise"], ["pointwise"]]


def test_several_values_cross_the_borders_of_a_neck() -> None:
    found = {block.name: block for block in find_blocks(quantized(traced("detector")))}
    assert names(found["reduce"].outputs) == {
        *("activation_quantizers_relu_3", "upsample_nearest2d", "conv_transpose2d")
    }
    assert names(found["mix.rbr_reparam"].inputs) == {
        *("upsample_nearest2d", "conv2d_5", "conv_transpose2d")
    }
    assert names(tuple(compared_outputs(found["reduce"]))) == {
        *("upsample_nearest2d", "conv_transpose2d")
    }
    assert names(found["heads.1"].inputs) == {"activation_quantizers_relu_3"}


def test_a_stage_is_a_run_of_one_spatial_size() -> None:
    assert [block.stage for block in find_blocks(sizes(1, 1, 2, 1, 2))] == [0, 0, 1, 1, 2]


@pytest.mark.parametrize("shape", [(-1, 12, 8), (-1, 3, 4, 8)], ids=["list", "map"])
def test_tokens_have_one_spatial_size_however_wide_they_are(shape: tuple[int, ...]) -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 32), nn.Linear(32, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.c(F.gelu(self.b(self.a(x.reshape(shape)))))

    found = find_blocks(quantized(trace(Tokens().eval(), (4, 8))))
    assert [block.stage for block in found] == [0, 0, 0]


def test_a_transformer_is_one_stage_until_its_class_token_is_taken() -> None:
    found = find_blocks(quantized(traced("vit")))
    assert found[-2].name == "blocks.0.mlp.fc2"
    assert [block.stage for block in found] == [0, 0, 0, 0, 1, 1]


def test_the_rest_of_a_stage_computes_its_last_outputs_from_the_blocks_own() -> None:
    found = find_blocks(sizes(1, 1, 1, 2))
    rest = rest_of_stage(found, 0)
    assert rest is not None
    assert list(rest.layers.values()) == ["1", "2"]
    assert rest.nodes == found[1].nodes + found[2].nodes
    assert rest.inputs == found[0].outputs
    assert rest.outputs == found[2].outputs
    assert rest_of_stage(found, 2) is None
    assert rest_of_stage(found, 3) is None


def test_the_rest_of_a_stage_reads_what_other_blocks_made_too() -> None:
    found = find_blocks(quantized(traced("detector")))
    index = [block.name for block in found].index("lateral")
    rest = rest_of_stage(found, index)
    assert rest is not None
    assert names(rest.inputs) == {"upsample_nearest2d", "conv2d_5", "conv_transpose2d"}


def test_consecutive_layers_that_match_one_declared_pattern_are_a_block() -> None:
    model = quantized(traced("reparameterized"))
    joined = layers(find_blocks(model, blocks=["[01].rbr_reparam"]))
    assert joined[0] == ["0.rbr_reparam", "1.rbr_reparam"]
    apart = layers(find_blocks(model, blocks=["0.*", "1.*"]))
    assert apart[:2] == [["0.rbr_reparam"], ["1.rbr_reparam"]]
    split = layers(find_blocks(model, blocks=["2.*", "3.*"]))
    assert split[2:4] == [["2.reparam_conv"], ["3.reparam_conv"]]


def test_consecutive_blocks_that_match_one_declared_pattern_are_a_stage() -> None:
    found = find_blocks(sizes(1, 2, 2, 1), stages=["[012]"])
    assert [block.stage for block in found] == [0, 0, 0, 1]


@pytest.mark.parametrize("argument", ["blocks", "stages"])
def test_a_pattern_that_matches_nothing_is_refused_in_one_line(argument: str) -> None:
    model = quantized(traced("reparameterized"))
    with pytest.raises(UnknownBlockError) as caught:
        find_blocks(model, **{argument: ["0.*", "stage9.*"]})
    assert caught.value.exit_code == 2
    message = str(caught.value)
    assert "\n" not in message
    for part in ("'stage9.*'", "0.rbr_reparam", "6"):
        assert part in message


def test_a_network_without_quantized_layers_has_no_blocks() -> None:
    model = quantized(traced("plain"), keep_float=["*"])
    assert find_blocks(model) == []
    with pytest.raises(UnknownBlockError):
        find_blocks(model, blocks=["0"])


@pytest.mark.parametrize("softmax", ["float", "uniform"])
@pytest.mark.parametrize("name", ["vit", "swin", "swin-padded"])
def test_a_residual_branch_is_one_block(name: str, softmax: Softmax) -> None:
    model, images = transformer(name, softmax=softmax), images_for(name, 3)
    found = find_blocks(model, units="chains")
    grouped = layers(found)
    merging = [["layers.1.downsample.reduction"]] if name.startswith("swin") else []
    stem = "layers.{0}.blocks.{1}" if merging else "blocks.{1}"
    branches = [
        [[f"{block}.attn.qkv", f"{block}.attn.proj"], [f"{block}.mlp.fc1", f"{block}.mlp.fc2"]]
        for block in (stem.format(i, j) for i in range(1 + len(merging)) for j in (0, 1))
    ]
    expected = [pair for two in branches[:2] for pair in two]
    expected += merging + [pair for two in branches[2:] for pair in two]
    assert grouped[1:-1] == expected
    known = {placeholder(model): images}
    for block in found:
        values = {node: known[node] for node in block.inputs}
        with torch.no_grad():
            run_nodes(model.graph_module, block.nodes, values, {}, len(images))
        known |= {node: values[node] for node in block.outputs}
    with torch.no_grad():
        assert any(torch.equal(value, model(images)[0]) for value in known.values())
