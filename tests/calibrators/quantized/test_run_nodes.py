from __future__ import annotations

import pytest
import torch
from torch import nn

from reptrt.calibrators.quantized.run_nodes import float_copy, float_overrides, run_nodes
from reptrt.calibrators.reconstruction.blocks import find_blocks
from reptrt.calibrators.reconstruction.objective import straight_through
from reptrt.models.graph import trace
from tests.reconstructing import float_values, placeholder
from tests.tiny_networks import NETWORKS, calibrated, quantized, smooth_images, traced


@pytest.mark.parametrize("name", NETWORKS)
def test_the_float_network_stays_itself_when_weights_and_scales_change(name: str) -> None:
    model, images = quantized(traced(name)), smooth_images(3, seed=2)
    run = float_copy(model)
    for tensor in model.graph_module.state_dict().values():
        if tensor.is_floating_point():
            tensor.mul_(0.5)
    with torch.no_grad():
        expected = traced(name)(images)
        expected = expected if isinstance(expected, tuple) else (expected,)
        found = run(images)
        changed = model(images)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert not torch.equal(changed[0], expected[0])


@pytest.mark.parametrize("count", [1, 3, 7])
@pytest.mark.parametrize("name", ["vit", "swin"])
def test_sizes_follow_the_batch(name: str, count: int) -> None:
    model, images = quantized(traced(name)), smooth_images(count, seed=2)
    with torch.no_grad():
        (found,) = float_copy(model)(images)
        assert torch.equal(found, traced(name)(images))


def test_sizes_follow_the_batch_in_the_middle_of_a_network() -> None:
    model, images = calibrated("vit"), smooth_images(5, seed=2)
    block = find_blocks(model)[1]
    expected = float_values(model, images)
    values = {node: expected[node] for node in block.inputs}
    with torch.no_grad():
        run_nodes(model.graph_module, block.nodes, values, float_overrides(model), len(images))
    assert all(torch.equal(values[node], expected[node]) for node in block.outputs)


def test_straight_through_the_quantized_network_is_itself_with_a_gradient() -> None:
    model = calibrated("reparameterized", (4, 4))
    model.graph_module.requires_grad_(False)
    images = smooth_images(4, seed=2).requires_grad_()
    nodes = [n for block in find_blocks(model) for n in block.nodes]
    values = {placeholder(model): images}
    run_nodes(model.graph_module, nodes, values, straight_through(model, nodes), 4)
    with torch.no_grad():
        (expected,) = model(images)
    torch.testing.assert_close(values[nodes[-1]].detach(), expected, rtol=1e-5, atol=1e-5)
    (gradient,) = torch.autograd.grad(values[nodes[-1]].square().sum(), images)
    values = {placeholder(model): images}
    run_nodes(model.graph_module, nodes, values, float_overrides(model), 4)
    (smooth,) = torch.autograd.grad(values[nodes[-1]].square().sum(), images)
    cosine = nn.functional.cosine_similarity(gradient.flatten(), smooth.flatten(), dim=0)
    assert float(cosine) > 0.5


def test_an_override_gets_the_arguments_of_its_node_and_stands_in_for_it() -> None:
    model = quantized(trace(nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU()).eval(), (4, 4)))
    nodes = {node.name: node for node in model.graph_module.graph.nodes}
    values = {placeholder(model): torch.zeros(2, 3, 4, 4)}
    overrides = {
        nodes["conv2d"]: lambda images, weight, bias, *_: images.new_full((2,), bias.numel() - 7.0),
        nodes["relu"]: lambda x: -x,
    }
    run_nodes(model.graph_module, [nodes["relu"]], values, overrides, 2)
    assert values[nodes["relu"]].tolist() == [5.0, 5.0]


def test_known_values_are_not_computed_again() -> None:
    model, images = calibrated("plain"), smooth_images(2, seed=2)
    relu = next(node for node in model.graph_module.graph.nodes if node.name == "relu")
    block = find_blocks(model)[1]
    given = torch.full_like(float_values(model, images)[relu], 2.0)
    values = {relu: given}
    with torch.no_grad():
        run_nodes(model.graph_module, block.nodes, values, float_overrides(model), len(images))
    assert values[relu] is given
    assert placeholder(model) not in values


def test_a_network_of_hundreds_of_operators_runs() -> None:
    layers = [nn.Conv2d(3, 3, 1), *(nn.ReLU() for _ in range(400)), nn.Conv2d(3, 2, 1)]
    model, images = quantized(trace(nn.Sequential(*layers).eval(), (4, 4))), torch.rand(2, 3, 4, 4)
    with torch.no_grad(), model.float_mode():
        expected = model(images)[0]
    with torch.no_grad():
        assert torch.equal(float_copy(model)(images)[0], expected)
