from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from reptrt.calibrators.quantized.quantized_model import QuantizedModel
from reptrt.calibrators.reconstruction import chains
from reptrt.calibrators.reconstruction.blocks import find_blocks
from reptrt.calibrators.settings import Units
from reptrt.models.graph import trace
from tests.reconstructing import run_blocks
from tests.tiny_networks import quantized, smooth_images, traced

Layers = dict[str, nn.Module]
Connect = Callable[[Layers, torch.Tensor], object]


class Network(nn.Module):
    """Convolutions to 4 channels behind a stem: depthwise as `dw...`, from 8 channels in capitals."""

    def __init__(self, names: str, connect: Connect) -> None:
        super().__init__()
        self.connect = connect
        self.stem = nn.Conv2d(3, 4, 1)
        for name in names.split():
            inputs, groups = 8 if name.isupper() else 4, 4 if name.startswith("dw") else 1
            self.add_module(name, nn.Conv2d(inputs, 4, 3, padding=1, groups=groups))

    def forward(self, images: torch.Tensor) -> object:
        return self.connect(dict(self.named_children()), F.relu(self.stem(images)))


def shuffle(m: Layers, x: torch.Tensor) -> torch.Tensor:
    """Two ShuffleNet units, the branches of the first interleaved, with squeeze and excitation."""
    left, right = m["dw1"](x), F.hardswish(m["a"](x))
    left, right = F.hardswish(m["b"](left)), m["dw2"](right)
    right = right * right.mean((2, 3), keepdim=True).sigmoid()
    x = F.hardswish(m["JOIN"](torch.cat([left, m["c"](right)], 1)))
    first, second = torch.cat([x, x], 1).chunk(2, 1)
    return torch.cat([first, m["e"](m["dw3"](second))], 1)


def neck(m: Layers, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A lateral convolution, a unit of two branches that a later map reads too, two heads."""
    lateral, deep = m["lateral"](x), m["down"](x)
    deep = m["JOIN"](torch.cat([m["a"](deep), m["b"](deep)], 1))
    shallow = m["MIX"](torch.cat([lateral, deep], 1))
    up = m["up"](shallow) + deep
    return _head(m, shallow, "p", "q"), _head(m, up, "r", "s")


def _head(m: Layers, x: torch.Tensor, score: str, box: str) -> torch.Tensor:
    return torch.cat([m[score](x).sigmoid(), m[box](x)], 1)


def nested(m: Layers, x: torch.Tensor) -> torch.Tensor:
    """A residual branch with another one inside, then a convolution."""
    y = m["a"](x)
    return m["e"](x + m["d"](y + m["c"](F.relu(m["b"](y)))))


def returned(m: Layers, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A residual branch from the inside of which the network returns a value."""
    y = m["a"](x)
    return m["c"](x + m["b"](y)), y


def read_elsewhere(m: Layers, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same, but a convolution reads the value, whose output the network returns."""
    y = m["a"](x)
    return x + m["b"](y), m["c"](y)


NETWORKS: dict[str, tuple[str, Connect]] = {
    "shuffle": ("dw1 a b dw2 c JOIN dw3 e", shuffle),
    "neck": ("lateral down a b JOIN MIX up p q r s", neck),
    "nested": ("a b c d e", nested),
    "returned": ("a b c", returned),
    "read elsewhere": ("a b c", read_elsewhere),
}


@cache
def network(name: str) -> QuantizedModel:
    """Uncalibrated; tests must not change it."""
    torch.manual_seed(0)
    return quantized(trace(Network(*NETWORKS[name]).eval(), (8, 8)))


def blocks(name: str, units: Units = "chains", declared: Sequence[str] = ()) -> list[str]:
    found = find_blocks(network(name), declared, units=units)
    return [" ".join(block.layers.values()) for block in found]


@pytest.mark.parametrize("units", ["layers", "chains"])
@pytest.mark.parametrize("name", NETWORKS)
def test_block_after_block_computes_what_the_whole_network_does(name: str, units: Units) -> None:
    model, images = network(name), 5 * smooth_images(2, seed=0, size=8)
    with torch.no_grad():
        expected = model(images)
    found = run_blocks(model, images, {}, units)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert expected[0].std() > 0


def test_a_shufflenet_unit_is_one_block() -> None:
    assert blocks("shuffle") == ["stem", "dw1 a b dw2 c", "JOIN", "dw3 e"]


def test_a_depthwise_and_its_pointwise_convolution_are_a_block_wherever_others_stand() -> None:
    assert blocks("shuffle", "layers") == ["stem", "a", "dw1 b", "dw2", "c", "JOIN", "dw3 e"]
    declared = blocks("shuffle", "layers", declared=["b"])
    assert declared == ["stem", "dw1", "a", "b", "dw2", "c", "JOIN", "dw3 e"]


def test_units_and_heads_of_a_neck_are_blocks_and_its_long_paths_are_not() -> None:
    assert blocks("neck") == ["stem", "lateral", "down", "a b", "JOIN", "MIX", "up", "p q", "r s"]


@pytest.mark.parametrize("name", ["returned", "read elsewhere"])
def test_a_branch_whose_inside_is_read_elsewhere_is_no_chain(name: str) -> None:
    assert blocks(name) == ["stem", "a", "b", "c"]


def test_the_longest_chain_within_the_limit_is_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    assert blocks("nested") == ["stem", "a b c d", "e"]
    monkeypatch.setattr(chains, "MOST_LAYERS", 4)
    assert blocks("nested") == ["stem", "a b c d", "e"]
    monkeypatch.setattr(chains, "MOST_LAYERS", 3)
    assert blocks("nested") == ["stem", "a", "b c", "d", "e"]
    monkeypatch.setattr(chains, "MOST_LAYERS", 1)
    assert blocks("nested") == blocks("nested", "layers") == ["stem", "a", "b", "c", "d", "e"]


def test_a_chain_with_a_declared_layer_is_left_to_the_recipe() -> None:
    assert blocks("nested", declared=["a"]) == ["stem", "a", "b c", "d", "e"]
    assert blocks("nested", declared=["[cd]"]) == ["stem", "a", "b", "c d", "e"]
    assert blocks("nested", declared=["e"]) == ["stem", "a b c d", "e"]


@pytest.mark.parametrize("name", ["plain", "reparameterized"])
def test_a_network_without_branches_has_no_chain(name: str) -> None:
    model = quantized(traced(name))
    assert find_blocks(model, units="chains") == find_blocks(model)
