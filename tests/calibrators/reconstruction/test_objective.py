from __future__ import annotations

import pytest
import torch
from torch import nn

from reptrt.calibrators.quantized.run_nodes import run_nodes
from reptrt.calibrators.reconstruction.blocks import rest_of_stage
from reptrt.calibrators.reconstruction.objective import BlockDistances, distance
from reptrt.calibrators.settings import Reconstruction
from reptrt.models.graph import trace
from tests.reconstructing import Stand, all_values, batches, float_values
from tests.tiny_networks import traced

ROWS = torch.arange(16)


def test_distances_by_hand() -> None:
    graph = trace(nn.Sequential(nn.Conv2d(3, 1, 1), nn.ReLU()).eval(), (2, 2)).graph
    a, b = [node for node in graph.nodes if node.op == "call_function"]
    found = {a: torch.tensor([[1.0, 2.0], [3.0, 4.0]]), b: torch.tensor([[10.0]])}
    expected = {a: torch.tensor([[1.0, 0.0], [3.0, 8.0]]), b: torch.tensor([[7.0]])}
    assert float(distance("l1", found, expected)) == 6 / 4 + 3
    assert float(distance("l2", found, expected)) == 20 / 4 + 9
    assert float(distance("l1", found, {b: expected[b]})) == 3
    importance = {a: torch.tensor([0.5, 1.5])}
    assert float(distance("fisher", found, expected, importance)) == 1.5 * 20 / 4 + 9
    assert float(distance("l2", found, expected, importance)) == 20 / 4 + 9


@pytest.mark.parametrize("loss", ["l1", "l2"])
def test_the_block_is_measured_on_the_quantized_blocks_before_it(loss: str) -> None:
    stand = Stand.before(traced("reparameterized"), 1, Reconstruction(loss=loss))
    images = torch.cat(batches())
    actual, target = all_values(stand.model, images), float_values(stand.model, images)
    (node,) = stand.block_inputs.blocks[1].outputs
    error = (actual[node] - target[node])[ROWS]
    expected = error.abs().mean() if loss == "l1" else error.square().mean()
    found = stand.distances(stand.learned())(ROWS)
    assert float(expected) > 0
    assert float(found.block.detach()) == pytest.approx(float(expected), rel=0.01)


def test_a_block_whose_quantizers_are_off_is_its_float_self() -> None:
    stand = Stand.before(traced("reparameterized"), 0, Reconstruction())
    distances = BlockDistances(
        stand.model,
        stand.block_inputs.float_network,
        stand.block_inputs,
        0,
        stand.chosen,
        torch.Generator(),
    )
    with torch.no_grad():
        found = distances(ROWS)
    assert float(found.block) == 0
    assert found.stage is not None
    assert float(found.stage) == 0


def distances_of(stand: Stand) -> list[float]:
    """Of block and stage: in a step, and judged."""
    distances = stand.distances(stand.learned())
    in_step = distances(ROWS)
    with torch.no_grad():
        judged = distances(ROWS)
    both = (in_step.block, in_step.stage, judged.block, judged.stage)
    return [0.0 if one is None else float(one.detach()) for one in both]


@pytest.mark.parametrize("flag", ["avx512_bf16", "amx_bf16"])
@pytest.mark.parametrize(
    ("name", "index", "bits", "rounds"),
    [("reparameterized", 0, 4, False), ("vit", 1, 4, True), ("vit", 1, 8, False)],
)
def test_a_step_rounds_linears_of_few_bits_and_the_rest_of_the_stage_to_bf16(
    monkeypatch: pytest.MonkeyPatch, flag: str, name: str, index: int, bits: int, rounds: bool
) -> None:
    exact: list[float] = []
    found: list[float] = []
    for able, into in ((False, exact), (True, found)):
        capabilities = {flag: able}
        monkeypatch.setattr(torch.cpu, "get_capabilities", capabilities.copy, raising=False)
        into += distances_of(Stand.before(traced(name), index, Reconstruction(), (bits, bits)))
    assert exact[:2] == exact[2:] == found[2:]  # a judgement is never rounded
    assert (found[0] != exact[0]) == rounds
    assert found[1] != exact[1]
    assert found == pytest.approx(exact, rel=0.05)


def test_the_stage_is_measured_behind_its_last_block() -> None:
    stand = Stand.before(traced("reparameterized"), 0, Reconstruction())
    (made,), rest = stand.block_inputs.blocks[0].outputs, stand.block_inputs.blocks[1]
    images = torch.cat(batches())[ROWS]
    quantized, target = all_values(stand.model, images), float_values(stand.model, images)
    layer = stand.model.graph_module.get_submodule(rest.name)
    behind = nn.functional.conv2d(quantized[made], layer.weight, layer.bias, padding=1).relu()
    expected = (behind - target[rest.outputs[0]]).abs().mean()
    found = stand.distances(stand.learned())(ROWS).stage
    assert found is not None
    assert float(found.detach()) == pytest.approx(float(expected), rel=0.01)


def test_a_stage_reads_the_quantized_values_of_the_blocks_beside() -> None:
    stand = Stand.before(traced("detector"), 5, Reconstruction())
    block, rest = stand.block_inputs.blocks[5], rest_of_stage(stand.block_inputs.blocks, 5)
    assert block.name == "lateral"
    assert rest is not None
    images, overrides = torch.cat(batches())[ROWS], stand.block_inputs.float_network
    quantized, target = all_values(stand.model, images), float_values(stand.model, images)
    values = {node: quantized[node] for node in block.inputs}
    with torch.no_grad():
        run_nodes(stand.model.graph_module, block.nodes, values, overrides, len(ROWS))
        known = {node: values.get(node, quantized[node]) for node in rest.inputs}
        run_nodes(stand.model.graph_module, rest.nodes, known, overrides, len(ROWS))
    expected = distance("l1", known, {node: target[node] for node in rest.outputs})
    distances = BlockDistances(
        *(stand.model, overrides, stand.block_inputs, 5, stand.chosen), torch.Generator()
    )
    found = distances(ROWS).stage
    assert found is not None
    assert float(found) == pytest.approx(float(expected), rel=0.01)


@pytest.mark.parametrize("suffix", ["float", "quantized"])
def test_the_stage_term_reaches_everything_that_the_block_learns(suffix: str) -> None:
    stand = Stand.before(traced("reparameterized"), 0, Reconstruction(suffix=suffix))
    learned = stand.learned()
    stage = stand.distances(learned)(ROWS).stage
    assert stage is not None
    parameters = [p for group in learned.parameter_groups() for p in group["params"]]
    gradients = torch.autograd.grad(stage, parameters)
    assert len(gradients) >= 5
    assert all(float(gradient.abs().max()) > 0 for gradient in gradients)


@pytest.mark.parametrize(("index", "weight"), [(1, 1.0), (0, 0.0)], ids=["last", "unweighted"])
def test_there_is_no_stage_term_at_the_end_of_a_stage_or_without_a_weight(
    index: int, weight: float
) -> None:
    chosen = Reconstruction(stage_weight=weight)
    stand = Stand.before(traced("reparameterized"), index, chosen)
    assert stand.distances(stand.learned())(ROWS).stage is None


def test_the_model_gets_no_gradient() -> None:
    stand = Stand.before(traced("detector"), 4, Reconstruction())
    learned = stand.learned()
    found = stand.distances(learned)(ROWS)
    assert found.stage is not None
    (found.block + found.stage).backward()
    assert all(parameter.grad is None for parameter in stand.model.graph_module.parameters())
    assert all(p.grad is not None for group in learned.parameter_groups() for p in group["params"])


def test_inputs_are_float_with_the_given_probability() -> None:
    found = {}
    for share in (0.0, 0.5, 1.0):
        stand = Stand.before(traced("reparameterized"), 1, Reconstruction(float_inputs=share))
        distances = BlockDistances(
            *(stand.model, stand.block_inputs.float_network, stand.block_inputs, 1, stand.chosen),
            torch.Generator().manual_seed(0),
        )
        found[share] = float(distances(ROWS, mixed=True).block)
        assert float(distances(ROWS).block) == pytest.approx(found.get(0.0, 0), rel=1e-6)
    assert found[1.0] == 0  # a float block on float inputs
    assert 0.2 * found[0.0] < found[0.5] < 0.9 * found[0.0]


def test_what_quantizers_inside_read_is_float_with_the_given_probability_in_a_step_alone() -> None:
    found = {}
    for share in (0.0, 0.5, 1.0):
        chosen = Reconstruction(float_inside=share)
        stand = Stand.before(traced("reparameterized"), 1, chosen, bits=(8, 3))
        distances = stand.distances(stand.learned())
        with torch.no_grad():
            found[share] = float(distances(ROWS, mixed=True).block)
            assert float(distances(ROWS).block) == pytest.approx(found[0.0], rel=1e-6)
    assert found[1.0] < found[0.5] < found[0.0]
