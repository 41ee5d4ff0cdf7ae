from __future__ import annotations

import pytest
import torch
from torch import nn

from reptrt.calibrators.importance import NO_IMPORTANCE
from reptrt.calibrators.quantized.quantized_model import QuantizedModel
from reptrt.calibrators.quantized.run_nodes import float_overrides, run_nodes
from reptrt.calibrators.reconstruction import block_inputs as walking
from reptrt.calibrators.reconstruction.activation_cache import ActivationCache
from reptrt.calibrators.reconstruction.block_inputs import CHUNK, BlockInputs, images_at_once
from reptrt.calibrators.reconstruction.blocks import (
    Block,
    compared_outputs,
    find_blocks,
    rest_of_stage,
)
from reptrt.models.graph import trace
from tests.reconstructing import GIBIBYTE, all_values, float_values
from tests.tiny_networks import NETWORKS, calibrated, quantized, smooth_images

COUNT = CHUNK + 8  # a whole chunk and a part of one
ROWS = torch.tensor([COUNT - 1, 3, 3, 0])


def walk_on(model: QuantizedModel, cache: ActivationCache, correction: float = 1.0) -> BlockInputs:
    model.graph_module.requires_grad_(False)
    batches = smooth_images(COUNT, seed=2).split([16, 16, 8])
    floats, blocks = float_overrides(model), find_blocks(model)
    return BlockInputs(model, blocks, batches, cache, floats, NO_IMPORTANCE, correction)


def pass_by(block_inputs: BlockInputs, *blocks: Block) -> None:
    for block in blocks:
        block_inputs.pass_in_float(block)
        block_inputs.pass_quantized(block)


def rows_of(value: torch.Tensor, images: torch.Tensor = ROWS) -> torch.Tensor:
    """Rows of `value` that belong to `images`: several per image behind a window partition."""
    return value.reshape(COUNT, -1, *value.shape[1:])[images].flatten(0, 1)


def close(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    """Chunks of another size add in another order, which moves a code now and then."""
    return bool((actual - expected).abs().mean() <= 1e-3 * expected.abs().mean() + 1e-7)


@pytest.mark.parametrize("max_bytes", [GIBIBYTE, 0], ids=["memory", "disk"])
@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_read_is_what_the_network_computes(name: str, max_bytes: int) -> None:
    model = calibrated(name, (6, 6))
    images = smooth_images(COUNT, seed=2)
    expected, expected_float = all_values(model, images), float_values(model, images)
    read = 0
    with ActivationCache(max_bytes) as cache:
        block_inputs = walk_on(model, cache)
        assert block_inputs.num_samples == COUNT
        for block in block_inputs.blocks:
            quantized_inputs = block_inputs.read_quantized(block.inputs, ROWS)
            inputs = block_inputs.read_float(block.inputs, ROWS)
            block_inputs.pass_in_float(block)
            targets = block_inputs.read_float(block.outputs, ROWS)
            block_inputs.pass_quantized(block)
            for node, value in quantized_inputs.items():
                assert close(value, rows_of(expected[node])), node
                read += 1
            for node, value in (*inputs.items(), *targets.items()):
                assert close(value, rows_of(expected_float[node])), node
        assert (cache.peak_bytes_in_memory == 0) == (max_bytes == 0)
    assert read >= len(block_inputs.blocks)


def test_memory_and_disk_give_the_same_bits() -> None:
    found = []
    for max_bytes in (GIBIBYTE, 0, 50_000):
        with ActivationCache(max_bytes) as cache:
            block_inputs = walk_on(calibrated("detector", (6, 6)), cache)
            pass_by(block_inputs, *block_inputs.blocks[:4])
            nodes = block_inputs.blocks[4].inputs
            found.append([*block_inputs.read_quantized(nodes, ROWS).values()])
            found[-1] += block_inputs.read_float(nodes, ROWS).values()
    assert len(found[0]) >= 2
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_only_what_a_later_block_reads_is_kept() -> None:
    with ActivationCache(GIBIBYTE) as cache:
        block_inputs = walk_on(calibrated("residual"), cache)
        for index, block in enumerate(block_inputs.blocks):
            pass_by(block_inputs, block)
            made = {node for done in block_inputs.blocks[: index + 1] for node in done.outputs}
            needed = {
                node for later in block_inputs.blocks[index + 1 :] for node in later.inputs
            } & made
            floats = COUNT * sum(node.meta["val"].shape[1:].numel() for node in needed)
            assert cache.bytes_in_memory == 2 * 4 * floats  # in float and quantized
        assert cache.bytes_in_memory == 0


def test_a_block_is_passed_as_it_is_at_that_moment() -> None:
    model = calibrated("reparameterized", (6, 6))
    with ActivationCache(GIBIBYTE) as cache:
        block_inputs = walk_on(model, cache)
        first, second, third = block_inputs.blocks[:3]
        pass_by(block_inputs, first)
        model.weight_of(second.name).mul_(0.5)
        pass_by(block_inputs, second)
        after = block_inputs.read_quantized(third.inputs, ROWS)
        target = block_inputs.read_float(third.inputs, ROWS)
        model.weight_of(second.name).zero_()
        again = block_inputs.read_quantized(third.inputs, ROWS)
    (node,) = third.inputs
    unchanged = float_values(calibrated("reparameterized", (6, 6)), smooth_images(COUNT, seed=2))
    by_name = {n.name: value for n, value in unchanged.items()}
    assert torch.equal(after[node], again[node])
    assert close(target[node], by_name[node.name][ROWS])
    assert float(after[node].abs().mean()) < 0.9 * float(target[node].abs().mean())


def test_the_stage_is_read_in_float_wherever_the_walk_stands_in_it() -> None:
    model = calibrated("reparameterized", (6, 6))
    expected = float_values(model, smooth_images(COUNT, seed=2))
    with ActivationCache(GIBIBYTE) as cache:
        block_inputs = walk_on(model, cache)
        for index, block in enumerate(block_inputs.blocks):
            rest = rest_of_stage(block_inputs.blocks, index)
            block_inputs.pass_in_float(block)
            if rest is not None:
                outputs = block_inputs.read_stage(rest, ROWS)
                assert list(outputs) == compared_outputs(rest)
                assert all(close(v, expected[n][ROWS]) for n, v in outputs.items())
            block_inputs.pass_quantized(block)


def test_statistics_are_of_the_float_output_of_every_channel() -> None:
    model = calibrated("plain", (4, 4))
    with ActivationCache(GIBIBYTE) as cache:
        block_inputs = walk_on(model, cache)
        pass_by(block_inputs, block_inputs.blocks[0])
        statistics = block_inputs.pass_in_float(block_inputs.blocks[1])
    expected = float_values(model, smooth_images(COUNT, seed=2))
    node = next(n for n in expected if n.name == "conv2d_1")
    channels = expected[node][:CHUNK].transpose(0, 1).flatten(1)
    mean, deviation = statistics["conv2d_1"]
    torch.testing.assert_close(mean, channels.mean(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(deviation, channels.std(1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dimensions", [2, 3, 4])
def test_statistics_of_a_linear_are_per_output_feature(dimensions: int) -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(12, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            shapes = {2: (-1, 12), 3: (-1, 4, 12), 4: (-1, 2, 2, 12)}
            return self.linear(x.reshape(shapes[dimensions]))

    size = {2: (2, 2), 3: (4, 4), 4: (4, 4)}[dimensions]
    module = Tokens().eval()
    model = quantized(trace(module, size))
    images = smooth_images(16, seed=0, size=4)[:, :, : size[0], : size[1]].contiguous()
    with ActivationCache(GIBIBYTE) as cache:
        block_inputs = BlockInputs(
            model, find_blocks(model), [images], cache, float_overrides(model)
        )
        mean, deviation = block_inputs.pass_in_float(block_inputs.blocks[0])["linear"]
    with torch.no_grad():
        features = module(images).flatten(0, -2)
    assert mean.shape == deviation.shape == (5,)
    torch.testing.assert_close(mean, features.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(deviation, features.std(0), rtol=1e-4, atol=1e-5)


def test_fewer_images_at_once_give_the_same_values(monkeypatch: pytest.MonkeyPatch) -> None:
    model = calibrated("plain", (6, 6))
    expected = float_values(model, smooth_images(COUNT, seed=2))
    monkeypatch.setattr(walking, "MOST_ELEMENTS", 3 * 8 * 16 * 16)
    blocks = find_blocks(model)
    assert [images_at_once(block.nodes) for block in blocks][:1] == [3]
    with ActivationCache(GIBIBYTE) as cache:
        block_inputs = walk_on(model, cache)
        pass_by(block_inputs, blocks[0])
        for node, value in block_inputs.read_float(blocks[1].inputs, ROWS).items():
            assert close(value, rows_of(expected[node]))


def test_windows_cross_a_border_and_stay_with_their_images() -> None:
    model = calibrated("swin", (6, 6))
    values = float_values(model, smooth_images(COUNT, seed=2))
    crossing = {node for block in find_blocks(model) for node in block.inputs}
    assert {len(values[node]) // COUNT for node in crossing} == {1, 4}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_of_a_fixed_batch_is_walked_in_its_own_batches(name: str) -> None:
    model, images = calibrated(name, batch_size=4), smooth_images(12, seed=0)
    expected = [float_values(model, batch) for batch in images.split(4)]
    with ActivationCache(GIBIBYTE) as cache:
        model.graph_module.requires_grad_(False)
        block_inputs = BlockInputs(
            model, find_blocks(model), images.split(4), cache, float_overrides(model)
        )
        assert block_inputs.batch_size == 4
        for block in block_inputs.blocks:
            for node, value in block_inputs.read_float(block.inputs, slice(12)).items():
                assert close(value, torch.cat([values[node] for values in expected])), node
            pass_by(block_inputs, block)


def test_any_number_of_images_goes_through_a_dynamic_batch() -> None:
    with ActivationCache(GIBIBYTE) as cache:
        assert walk_on(calibrated("plain"), cache).batch_size is None


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("correction", [0.0, 0.25, 1.0])
def test_a_target_corrects_that_share_of_what_came_before(name: str, correction: float) -> None:
    model = calibrated(name, (4, 4))
    with ActivationCache(GIBIBYTE) as cache:
        block_inputs = walk_on(model, cache, correction)
        pass_by(block_inputs, *block_inputs.blocks[:2])
        block = block_inputs.blocks[2]
        block_inputs.pass_in_float(block)
        own = block_inputs.read_quantized(block.inputs, ROWS)
        with torch.no_grad():
            run_nodes(model.graph_module, block.nodes, own, block_inputs.float_network, len(ROWS))
        target = block_inputs.read_target(compared_outputs(block), ROWS)
        for node, exact in block_inputs.read_float(compared_outputs(block), ROWS).items():
            assert not close(own[node], exact)
            assert close(target[node], own[node] + correction * (exact - own[node]))
