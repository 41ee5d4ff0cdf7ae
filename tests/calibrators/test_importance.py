"""How much the outputs depend on what blocks make."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from reptrt.calibrators.importance import (
    LEAST,
    MOST,
    NUM_IMAGES,
    Importance,
    draw_positions,
    find_importance,
)
from reptrt.calibrators.quantized.run_nodes import float_overrides
from reptrt.calibrators.reconstruction.blocks import compared_outputs, find_blocks
from reptrt.models.graph import trace
from tests.reconstructing import all_values
from tests.tiny_networks import NETWORKS, quantized, smooth_images, traced
from tests.tiny_transformers import TRANSFORMERS, images_for, transformer

READ = [1.0, -2.0, 0.5, 0.01]


class Chain(nn.Module):
    """What the second layer reads of each channel is known."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 1, 1)
        with torch.no_grad():
            self.second.weight.copy_(torch.tensor(READ).view(1, 4, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


def importance_of(model, images: torch.Tensor, units: str = "layers", seed: int = 0) -> Importance:
    made = [node for block in find_blocks(model, units=units) for node in compared_outputs(block)]
    return find_importance(model, made, images.split(16), float_overrides(model), seed)


def test_it_is_the_squared_derivative_of_the_outputs_between_its_limits_with_mean_1() -> None:
    model = quantized(trace(Chain().eval(), (6, 6)), (4, 4))
    first, _ = find_blocks(model)
    found = importance_of(model, smooth_images(32, seed=0, size=6))[first.outputs[0]]
    squares = torch.tensor(READ).square()
    expected = (squares / squares.mean()).clamp(LEAST, MOST)
    expected = (expected / expected.mean()).view(4, 1, 1).expand(4, 6, 6)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", [*NETWORKS, *TRANSFORMERS])
def test_every_output_of_a_block_has_one_and_a_seed_gives_the_same_again(name: str) -> None:
    is_transformer = name in TRANSFORMERS
    model = transformer(name, (4, 4)) if is_transformer else quantized(traced(name), (4, 4))
    images = images_for(name, 8) if is_transformer else smooth_images(8, seed=0)
    found, again = (importance_of(model, images, "chains") for _ in range(2))
    values = all_values(model, images)
    wanted = {n for block in find_blocks(model, units="chains") for n in compared_outputs(block)}
    assert set(found) <= wanted
    assert len(found) >= len(wanted) - 1  # class numbers have no derivative
    for node, weight in found.items():
        assert float(weight.mean()) == pytest.approx(1.0, abs=1e-4)
        assert torch.broadcast_shapes(weight.shape, values[node].shape) == values[node].shape
        assert torch.equal(weight, again[node])
    other = importance_of(model, images, "chains", seed=1)
    assert any(not torch.equal(found[node], other[node]) for node in found)


def test_no_more_images_are_read_than_it_takes() -> None:
    model = quantized(traced("plain"), (4, 4))
    images = smooth_images(NUM_IMAGES + 32, seed=0)
    whole, few = importance_of(model, images), importance_of(model, images[:NUM_IMAGES])
    assert all(torch.equal(whole[node], few[node]) for node in whole)


def test_positions_are_drawn_as_often_as_they_matter() -> None:
    generator = torch.Generator().manual_seed(0)
    chances = torch.tensor([6.0, 1.0, 1.0, 0.0])
    drawn = draw_positions((2000, 4), 8000, chances, generator)
    images, places = drawn // 4, drawn % 4
    assert drawn.shape == (8000,)
    assert places.bincount(minlength=4).div(8000).tolist() == pytest.approx(
        [0.75, 0.125, 0.125, 0.0], abs=0.02
    )
    assert images.unique().numel() > 1900


def test_without_importance_each_position_is_drawn_once() -> None:
    drawn = draw_positions((5, 4), 99, None, torch.Generator().manual_seed(0))
    assert drawn.sort().values.tolist() == list(range(20))
