"""What blocks are expected to take, before there are scales."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from reptrt.calibrators.quantized.quantized_model import QuantizedModel
from reptrt.calibrators.reconstruction.blocks import find_blocks
from reptrt.calibrators.reconstruction.effort import Budget
from reptrt.calibrators.reconstruction.forecast import (
    GAINED_DB,
    USUAL_SHARE,
    expected_shares,
    time_nodes,
)
from reptrt.models.graph import trace
from tests.tiny_networks import NETWORKS, quantized, smooth_images, traced

ROUNDS = Budget(8, 8, (10, 15, 25))
IMAGES = 8


def shares(model: QuantizedModel, budget: Budget) -> list[float]:
    blocks = find_blocks(model)
    return expected_shares(model, blocks, [budget] * len(blocks), smooth_images(IMAGES, seed=0))


@pytest.mark.parametrize("name", NETWORKS)
def test_fewer_blocks_suffice_the_more_is_asked_of_them(name: str) -> None:
    model = quantized(traced(name), (8, 8))
    learning = []
    for needed in (-100.0, 20.0, 40.0, 60.0, 200.0):
        found = shares(model, replace(ROUNDS, enough_db=needed))
        assert set(found) <= {0.0, USUAL_SHARE}
        learning.append(sum(map(bool, found)))
    assert learning == sorted(learning)
    assert learning[0] == 0
    assert learning[-1] == len(find_blocks(model))


def test_a_block_is_judged_behind_float_inputs_with_min_max_scales() -> None:
    layer = nn.Conv2d(3, 4, 3, padding=1)
    model = quantized(trace(nn.Sequential(layer, nn.ReLU()).eval(), (16, 16)), (8, 8))
    images = smooth_images(IMAGES, seed=0)
    weight = layer.weight.detach()
    step = weight.abs().amax((1, 2, 3), keepdim=True) / 127
    rounded = torch.round(weight / step) * step
    unit = images.abs().max() / 127
    read = torch.round(images / unit) * unit
    exact, found = (
        nn.functional.conv2d(x, w, layer.bias, padding=1).relu()
        for x, w in ((images, weight), (read, rounded))
    )
    ratio = exact.square().sum() / (found - exact).square().sum()
    snr = 10 * math.log10(float(ratio.detach()))
    for margin, share in ((-0.1, 0.0), (0.1, USUAL_SHARE)):
        budget = replace(ROUNDS, enough_db=snr + GAINED_DB + margin)
        assert shares(model, budget)[0] == share


def test_one_round_is_taken_whole() -> None:
    model = quantized(traced("vit"), (4, 4))
    assert set(shares(model, Budget(8, 8, (50,), enough_db=math.inf))) == {1.0}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_node_is_timed(name: str) -> None:
    model = quantized(traced(name), (8, 8))
    found = time_nodes(model, smooth_images(2, 0))
    assert set(found) == set(model.graph_module.graph.nodes)
    assert all(spent >= 0 for spent in found.values())
    assert sum(found.values()) > 0
