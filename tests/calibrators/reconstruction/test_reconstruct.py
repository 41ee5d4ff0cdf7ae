from __future__ import annotations

import math

import pytest
import torch
from torch import fx

from reptrt.calibrators.quantized.channel_affine import ChannelAffine
from reptrt.calibrators.reconstruction.effort import Budget
from reptrt.calibrators.reconstruction.objective import Distances
from reptrt.calibrators.reconstruction.reconstruct import (
    LearnedBlock,
    falling_rates,
    objective,
    reconstruct,
)
from reptrt.calibrators.settings import Reconstruction
from reptrt.models.graph import trace
from tests.reconstructing import Stand, Twice, differing, learn_gently, state_of, with_outliers
from tests.tiny_networks import randomize, traced

SHORT = Reconstruction(iterations=40, batch_size=16)
ALL = Budget(16, 0, (40,), closed_forms=False)


gentle = pytest.fixture(scope="module", autouse=True)(learn_gently)


def teach(stand: Stand, learned: LearnedBlock) -> None:
    """Learn, and leave the model as it was."""
    budget = Budget(16, 0, (stand.chosen.iterations,), closed_forms=False)
    reconstruct(
        *(learned, stand.distances(learned), stand.block_inputs.num_samples, budget),
        *(torch.Generator().manual_seed(0), lambda: None),
    )


def learn(stand: Stand, learned: LearnedBlock) -> tuple[float, float]:
    """Learn and commit; the distance of the block as the model has it, before and after."""
    before = float(stand.measured().block)
    teach(stand, learned)
    learned.commit()
    return before, float(stand.measured().block)


@torch.no_grad()
def louder(factor: float) -> fx.GraphModule:
    """The reparameterized network whose second block's output is `factor` times as large."""
    module = traced("reparameterized")
    module.get_parameter("1.rbr_reparam.weight").mul_(factor)
    module.get_parameter("1.rbr_reparam.bias").mul_(factor)
    module.get_parameter("2.reparam_conv.weight").div_(factor)
    return module


@pytest.mark.parametrize("index", [0, 1, 2, 3])
@pytest.mark.parametrize("loss", ["l1", "l2"])
def test_a_block_comes_closer_to_float(index: int, loss: str) -> None:
    stand = Stand.before(with_outliers(), index, SHORT.model_copy(update={"loss": loss}))
    before, after = learn(stand, stand.learned())
    assert after < 0.97 * before


@pytest.mark.parametrize("rounding", ["ste", "adaround", "nearest"])
def test_every_rounding_learns(rounding: str) -> None:
    stand = Stand.before(with_outliers(), 2, SHORT.model_copy(update={"rounding": rounding}))
    before = float(stand.measured(32).block)
    learned = stand.learned()
    start = float(stand.distances(learned)(torch.arange(32)).block.detach())
    assert rounding == "adaround" or start == pytest.approx(before, rel=1e-3)
    learn(stand, learned)
    assert float(stand.measured(32).block) < 0.97 * before


@pytest.mark.parametrize("rounding", ["ste", "adaround", "nearest"])
def test_what_is_committed_is_what_was_learned(rounding: str) -> None:
    stand = Stand.before(with_outliers(), 2, SHORT.model_copy(update={"rounding": rounding}))
    learned = stand.learned()
    teach(stand, learned)
    if rounding == "adaround":  # undecided weights are decided by the commit
        for group in learned.parameter_groups():
            for parameter in group["params"]:
                if parameter.ndim > 1:
                    parameter.data = torch.where(parameter >= 0, 9.0, -9.0)
    with torch.no_grad():
        reached = stand.distances(learned)(torch.arange(16))
    learned.commit()
    committed = stand.measured()
    assert float(committed.block) == pytest.approx(float(reached.block.detach()), rel=1e-3)
    assert reached.stage is not None
    assert committed.stage is not None
    assert float(committed.stage) == pytest.approx(float(reached.stage.detach()), rel=1e-3)


def test_only_the_tensors_of_the_block_change_and_only_when_it_is_committed() -> None:
    stand = Stand.before(traced("reparameterized"), 2, SHORT)
    before = state_of(stand.model)
    learned = stand.learned()
    teach(stand, learned)
    assert differing(before, state_of(stand.model)) == set()
    learned.commit()
    expected = {
        *("2.reparam_conv.weight", "2.reparam_conv.bias"),
        *("3.reparam_conv.weight", "3.reparam_conv.bias"),
        *("weight_quantizers.2/reparam_conv.scale", "weight_quantizers.3/reparam_conv.scale"),
        *("activation_quantizers.relu_1.scale", "activation_quantizers.relu_2.scale"),
    }
    assert differing(before, state_of(stand.model)) == expected
    assert sorted(learned.tensor_names) == sorted(expected)


@pytest.mark.parametrize("rounding", ["ste", "adaround"])
def test_committed_weights_are_whole_numbers_of_their_scale(rounding: str) -> None:
    stand = Stand.before(with_outliers(), 2, SHORT.model_copy(update={"rounding": rounding}))
    model = stand.model
    before = {
        name: q.quantize(model.weight_of(name)) for name, q in model.weight_quantizers.items()
    }
    learned = stand.learned()
    learn(stand, learned)
    for name in ("2.reparam_conv", "3.reparam_conv"):
        weight, quantizer = model.weight_of(name), model.weight_quantizers[name]
        codes = weight / quantizer.scale.view(-1, 1, 1, 1)
        torch.testing.assert_close(codes, codes.round(), rtol=1e-6, atol=0)
        exported = quantizer.quantize(weight)
        assert torch.equal(exported.float(), codes.round())
        assert int(exported.abs().max()) <= quantizer.grid.quant_max
        assert torch.equal(quantizer(weight), weight)
        assert 0 < int((exported != before[name]).sum()) < exported.numel()


def test_an_untouched_block_commits_the_quantized_layer_it_started_as() -> None:
    stand = Stand.before(traced("reparameterized"), 2, SHORT.model_copy(update={"iterations": 0}))
    model, name = stand.model, "2.reparam_conv"
    codes = model.weight_quantizers[name].quantize(model.weight_of(name))
    scale = model.weight_quantizers[name].scale.clone()
    learned = stand.learned()
    before, after = learn(stand, learned)
    assert after == pytest.approx(before, rel=1e-3)
    assert torch.equal(model.weight_quantizers[name].quantize(model.weight_of(name)), codes)
    torch.testing.assert_close(model.weight_quantizers[name].scale, scale)


def test_affine_maps_with_negative_gains_leave_positive_scales() -> None:
    stand = Stand.before(traced("reparameterized"), 2, SHORT)
    gains = torch.linspace(-2, 2.5, 16)
    affines = {
        layer: ChannelAffine(gains[:count], torch.full((count,), 0.3))
        for layer, count in (("2.reparam_conv", 8), ("3.reparam_conv", 16))
    }
    block = stand.block_inputs.blocks[2]
    learned = LearnedBlock(stand.model, block, affines, stand.units(), SHORT, set())
    start = float(stand.distances(learned)(torch.arange(16)).block.detach())
    before, after = learn(stand, learned)
    assert start == pytest.approx(before, rel=0.01)
    assert after < 0.97 * before
    assert all(float(q.scale.min()) > 0 for q in stand.model.weight_quantizers.values())


def test_a_shared_weight_is_learned_by_its_first_block_alone() -> None:
    module = randomize(Twice())
    stand = Stand.before(trace(module, (16, 16)), 0, SHORT)
    first = stand.learned()
    learn(stand, first)
    model, (block, other) = stand.model, stand.block_inputs.blocks
    assert model.weight_quantizers["conv"] in first.quantizers
    state = state_of(model)
    affines = {"conv": ChannelAffine.identity(3)}
    second = LearnedBlock(model, other, affines, {"conv": 1.0}, SHORT, first.quantizers)
    assert second.tensor_names == ["activation_quantizers.relu.scale"]
    assert len(second.overrides) == 1
    stand.block_inputs.pass_quantized(block)
    statistics = stand.block_inputs.pass_in_float(other)
    learn(Stand(model, stand.block_inputs, SHORT, 1, statistics), second)
    assert differing(state, state_of(model)) == {"activation_quantizers.relu.scale"}


def test_a_weight_that_is_read_twice_in_a_block_is_learned_once() -> None:
    chosen = SHORT.model_copy(update={"blocks": ("conv",)})
    stand = Stand.before(trace(randomize(Twice()), (16, 16)), 0, chosen, bits=(8, 4))
    learned = stand.learned()
    assert len(stand.block_inputs.blocks) == 1
    assert sorted(learned.tensor_names) == [
        *("activation_quantizers.relu.scale", "activation_quantizers.x.scale"),
        *("conv.bias", "conv.weight", "weight_quantizers.conv.scale"),
    ]
    before = float(stand.measured().block)
    teach(stand, learned)
    assert float(stand.distances(learned)(torch.arange(16)).block.detach()) < before
    reads = [node for node in learned.overrides if node.name.startswith("weight_quantizers")]
    first, second = (learned.overrides[node](None) for node in reads)
    assert torch.equal(first, second)
    assert not torch.equal(
        first, stand.model.weight_quantizers["conv"](stand.model.weight_of("conv"))
    )


def test_a_scale_that_a_concat_shares_is_one_parameter() -> None:
    names = [block.name for block in Stand.before(traced("detector"), 0, SHORT).block_inputs.blocks]
    stand = Stand.before(traced("detector"), names.index("mix.rbr_reparam"), SHORT)
    learned = stand.learned()
    calls = [node for node in learned.overrides if node.op == "call_module" and "act" in node.name]
    assert len(calls) == 3
    assert len({learned.overrides[node] for node in calls}) == 1
    rates = [group for group in learned.parameter_groups() if len(group["params"]) == 1]
    assert sum(p.ndim == 0 for group in rates for p in group["params"]) == 1


def test_settings_choose_what_is_learned() -> None:
    stand = Stand.before(traced("reparameterized"), 1, SHORT)

    def shapes(**choices: object) -> list[int]:
        stand.chosen = SHORT.model_copy(update=choices)
        groups = stand.learned().parameter_groups()
        return sorted(p.numel() for group in groups for p in group["params"])

    weights, channels = 8 * 8 * 9, 8
    assert shapes() == [1, channels, channels, channels, weights]
    assert shapes(rounding="nearest") == [1, channels, channels, channels]
    assert shapes(affine="none") == [1, channels, weights]
    assert shapes(rounding="nearest", affine="none") == [1, channels]


def test_adarounds_penalty_begins_late_and_vanishes_when_all_is_decided() -> None:
    chosen = SHORT.model_copy(update={"rounding": "adaround"})
    learned = Stand.before(traced("reparameterized"), 1, chosen).learned()
    assert float(learned.rounding_penalty(0.0)) == 0
    late = learned.rounding_penalty(1.0)
    assert isinstance(late, torch.Tensor)
    assert float(late.detach()) > 0.01
    for group in learned.parameter_groups():
        for parameter in group["params"]:
            if parameter.numel() == 8 * 8 * 9:
                parameter.data = torch.where(parameter > 0, 20.0, -20.0)
    decided = learned.rounding_penalty(1.0)
    assert isinstance(decided, torch.Tensor)
    assert float(decided.detach()) == 0
    plain = Stand.before(traced("reparameterized"), 1, SHORT).learned()
    assert plain.rounding_penalty(1.0) == 0


@pytest.mark.parametrize(("weight", "direction"), [(0.1, 1), (10.0, -1)], ids=["block", "stage"])
def test_the_stage_pulls_as_hard_as_its_weight_says(weight: float, direction: int) -> None:
    chosen = SHORT.model_copy(update={"stage_weight": weight})
    learned = Stand.before(traced("reparameterized"), 1, chosen).learned()
    bias = next(o for node, o in learned.overrides.items() if str(node.target).endswith("bias"))
    start = bias().detach()

    def pull(_: torch.Tensor, *, mixed: bool = False, stage: bool = True) -> Distances:
        """The block would raise the biases and the stage lower them, whatever their units."""
        moved = bias() - start
        return Distances((moved - 1).square().mean(), 1000 * (moved + 1).square().mean())

    reconstruct(learned, pull, 32, ALL, torch.Generator(), lambda: None)
    assert bool((direction * (bias() - start) > 0.01).all())


def test_adaround_becomes_more_decided() -> None:
    chosen = SHORT.model_copy(update={"rounding": "adaround", "iterations": 100})
    stand = Stand.before(traced("reparameterized"), 1, chosen)
    learned = stand.learned()
    before = float(learned.rounding_penalty(1.0).detach())
    teach(stand, learned)
    assert float(learned.rounding_penalty(1.0).detach()) < 0.99 * before


@pytest.mark.parametrize("factor", [2.0**-10, 2.0**10], ids=["quiet", "loud"])
def test_how_loud_a_layer_is_does_not_change_how_well_it_is_learned(factor: float) -> None:
    ratios = []
    for module in (louder(1.0), louder(factor)):
        stand = Stand.before(module, 1, SHORT.model_copy(update={"stage_weight": 0.0}))
        before, after = learn(stand, stand.learned())
        ratios.append(after / before)
    assert ratios[1] == pytest.approx(ratios[0], rel=0.02)


def test_the_objective_is_asked_for_drawn_images_and_every_step_is_reported() -> None:
    stand = Stand.before(traced("reparameterized"), 1, SHORT)
    learned, steps, drawn, mixtures = stand.learned(), [], [], []
    measure = stand.distances(learned)

    def distances(indices: torch.Tensor, *, mixed: bool = False, stage: bool = True) -> object:
        drawn.append(indices.tolist())
        mixtures.append(mixed)
        return measure(indices, mixed=mixed, stage=stage)

    taken = reconstruct(
        *(learned, distances, 32, ALL, torch.Generator().manual_seed(7)),
        lambda: steps.append(1),
    )
    assert taken == len(steps) == 40
    assert drawn[0] == drawn[-1] == list(range(16))
    assert {index for indices in drawn[1:-1] for index in indices} == set(range(32))
    assert mixtures == [False] + [True] * 40 + [False]


def test_held_out_images_are_judged_and_never_drawn() -> None:
    stand, drawn = Stand.before(traced("reparameterized"), 1, SHORT), []
    learned = stand.learned()
    measure = stand.distances(learned)

    def distances(indices: torch.Tensor, **how: bool) -> object:
        drawn.append(indices.tolist())
        return measure(indices, **how)

    budget = Budget(16, 8, (3, 5))
    reconstruct(learned, distances, 32, budget, torch.Generator().manual_seed(7), lambda: None)
    judged = [indices for indices in drawn if indices == list(range(24, 32))]
    steps = [indices for indices in drawn if indices not in judged]
    assert (len(judged), len(steps)) in ((2, 3), (3, 8))
    assert max(index for indices in steps for index in indices) < 24


@pytest.mark.parametrize(
    ("looks", "taken", "moved"),
    [((1.0, 0.5, 0.499), 5, True), ((1.0, 2.0), 2, False), ((1.0, float("nan")), 2, False)],
    ids=["small gain", "worse", "nan"],
)
def test_a_round_that_does_not_help_is_the_last_one(
    looks: tuple[float, ...], taken: int, moved: bool
) -> None:
    learned = Stand.before(traced("reparameterized"), 1, SHORT).learned()
    bias = next(o for node, o in learned.overrides.items() if str(node.target).endswith("bias"))
    start, seen = bias().detach().clone(), iter(looks)

    def distances(_: torch.Tensor, *, mixed: bool = False, stage: bool = True) -> Distances:
        return Distances(bias().sum() if mixed else torch.tensor(next(seen)), None)

    budget = Budget(4, 8, (2, 3, 4))
    assert reconstruct(learned, distances, 32, budget, torch.Generator(), lambda: None) == taken
    assert (not torch.equal(bias().detach(), start)) == moved


def test_the_stage_takes_part_as_often_as_the_budget_says() -> None:
    learned, stages = Stand.before(traced("reparameterized"), 1, SHORT).learned(), []
    bias = next(o for node, o in learned.overrides.items() if str(node.target).endswith("bias"))

    def distances(_: torch.Tensor, *, mixed: bool = False, stage: bool = True) -> Distances:
        if mixed:
            stages.append(stage)
        return Distances(bias().square().sum(), None)

    budget = Budget(4, 0, (6,), stage_every=4)
    reconstruct(learned, distances, 32, budget, torch.Generator(), lambda: None)
    assert stages == [True, False, False, False, True, False]


def test_the_rate_falls_to_zero_in_every_round() -> None:
    assert falling_rates((2, 4)) == pytest.approx([1, 0.5, 1, 0.853553, 0.5, 0.146447, 0], abs=1e-6)


def test_the_objective_by_hand() -> None:
    def distances(block: float, stage: float | None) -> Distances:
        return Distances(torch.tensor(block), None if stage is None else torch.tensor(stage))

    first = distances(2.0, 10.0)
    assert float(objective(first, first, 3.0)) == 4
    assert float(objective(distances(1.0, 20.0), first, 3.0)) == 0.5 + 6
    assert float(objective(distances(1.0, 20.0), first, 0.0)) == 0.5
    assert float(objective(distances(1.0, None), distances(2.0, None), 3.0)) == 0.5
    assert math.isfinite(float(objective(first, distances(0.0, 0.0), 1.0)))
