"""What a block may spend: images by positions, rounds, and the SNR that is enough."""

from __future__ import annotations

import math

import pytest
import torch

from reptrt.calibrators.reconstruction.blocks import Block, find_blocks, rest_of_stage
from reptrt.calibrators.reconstruction.effort import (
    FEW_BITS_STEPS,
    FEWEST_IMAGES,
    HELD_OUT,
    RARELY,
    Budget,
    budget_of,
    enough_snr,
    judged_images,
    rounds_of,
)
from reptrt.calibrators.reconstruction.work import ELEMENT, positions, work
from reptrt.calibrators.registry import create_calibrator
from reptrt.calibrators.settings import Reconstruction, Settings
from reptrt.models.graph import trace
from tests.tiny_networks import NETWORKS, quantized, randomize, traced

DEFAULT = Reconstruction()


def blocks_of(size: int) -> list[Block]:
    """Of convolutions 3 -> 8 -> 8 with a map of `size`, then one of stride 2."""
    layers = [torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Conv2d(8, 8, 3, padding=1)]
    layers.append(torch.nn.Conv2d(8, 4, 3, padding=1, stride=2))
    module = randomize(torch.nn.Sequential(*layers))
    return find_blocks(quantized(trace(module, (size, size)), (8, 8)))


def budget(blocks: list[Block], index: int, count: int = 256, **choices: object) -> Budget:
    settings = Settings(
        **{key: choices.pop(key) for key in ("effort", "target_snr") if key in choices}
    )
    fixed, bits = choices.pop("fixed", None), choices.pop("bits", 8)
    chosen = DEFAULT.model_copy(update=choices)
    return budget_of(blocks, index, count, fixed, settings, chosen, bits)


def test_work_and_positions_by_hand() -> None:
    first, _, last = blocks_of(16)
    assert (positions(first.nodes), positions(last.nodes)) == (16 * 16, 8 * 8)
    layer = next(node for node in last.nodes if node.name in last.layers)
    assert work([layer]) == 4 * 8 * 8 * (8 * 9 + ELEMENT)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_has_positions_and_work(name: str) -> None:
    for block in find_blocks(quantized(traced(name), (8, 8))):
        assert positions(block.nodes) >= 1
        assert work(block.nodes) > 0


@pytest.mark.parametrize(("size", "images"), [(160, FEWEST_IMAGES), (64, 4), (32, 16), (16, 32)])
def test_a_step_has_as_many_images_as_have_the_positions(size: int, images: int) -> None:
    assert budget(blocks_of(size), 0).batch_size == images


def test_a_choice_bounds_the_images_and_a_fixed_graph_sets_them() -> None:
    blocks = blocks_of(16)
    assert budget(blocks, 0, batch_size=5).batch_size == 5
    assert budget(blocks, 0, fixed=6).batch_size == budget(blocks, 0, fixed=6).held_out == 6
    assert budget(blocks, 0, 8, fixed=6).held_out == 0


def test_high_effort_is_all_steps_at_once_without_closed_forms() -> None:
    assert budget(blocks_of(160), 0, effort="high") == Budget(32, 0, (50,), closed_forms=False)
    for bits, steps in ((6, 50), (4, FEW_BITS_STEPS)):
        assert budget(blocks_of(160), 0, effort="high", bits=bits).rounds == (steps,)
    assert budget(blocks_of(160), 0, effort="high", bits=4, iterations=7).rounds == (7,)


def test_low_effort_has_no_rounds() -> None:
    assert budget(blocks_of(16), 0, effort="low").rounds == ()


def test_rounds_add_up_to_the_steps_and_none_is_empty() -> None:
    assert rounds_of(DEFAULT, 8) == (10, 15, 25)
    for steps in range(12):
        rounds = rounds_of(DEFAULT.model_copy(update={"iterations": steps}), 8)
        assert sum(rounds) == steps
        assert 0 not in rounds
    soft = DEFAULT.model_copy(update={"rounding": "adaround"})
    assert rounds_of(soft, 8) == (50,)


def test_below_8_bits_all_steps_are_one_round() -> None:
    assert [budget(blocks_of(16), 0, bits=bits).rounds for bits in (8, 6, 4)] == [
        *((10, 15, 25), (50,), (FEW_BITS_STEPS,))
    ]
    for bits in (6, 4):
        assert rounds_of(DEFAULT.model_copy(update={"iterations": 0}), bits) == ()
        assert rounds_of(Reconstruction(iterations=50), bits) == (50,)  # as a recipe says


def test_below_6_bits_steps_and_judgements_have_four_times_the_images() -> None:
    for bits, images, held_out in ((8, 4, 8), (6, 4, 8), (5, 16, 32), (4, 16, 32)):
        found = budget(blocks_of(64), 0, bits=bits)
        assert (found.batch_size, found.held_out) == (images, held_out)
    assert budget(blocks_of(64), 0, 60, bits=4).held_out == 15
    assert budget(blocks_of(16), 0, bits=4).batch_size == DEFAULT.batch_size


def test_weights_that_are_not_decided_are_not_judged_by_their_snr() -> None:
    soft = budget(blocks_of(16), 0, rounding="adaround")
    assert not soft.closed_forms
    assert soft.enough_db == math.inf


def test_sixty_three_blocks_share_the_noise_of_20_db() -> None:
    assert enough_snr(20.0, 63) == pytest.approx(35.0, abs=0.01)
    assert budget(blocks_of(16), 0, target_snr=30.0).enough_db == pytest.approx(
        30 + 4.77 - 3, abs=0.01
    )


def test_a_long_rest_of_the_stage_takes_part_now_and_then() -> None:
    blocks = find_blocks(quantized(traced("reparameterized"), (8, 8)), stages=["*"])
    for index, block in enumerate(blocks):
        rest = rest_of_stage(blocks, index)
        is_long = rest is not None and work(rest.nodes) > 2 * work(block.nodes)
        assert budget(blocks, index).stage_every == (RARELY if is_long else 1)
    assert {budget(blocks, index).stage_every for index in range(len(blocks))} == {1, RARELY}
    assert budget(blocks, 0, stage_weight=0.0).stage_every == 1


@pytest.mark.parametrize(
    ("count", "held_out", "judged"),
    [(256, HELD_OUT, range(248, 256)), (16, 4, range(12, 16)), (3, 0, range(3)), (1, 0, range(1))],
)
def test_the_last_images_are_held_out_where_there_are_enough(
    count: int, held_out: int, judged: range
) -> None:
    found = budget(blocks_of(16), 0, count)
    assert found.held_out == held_out
    assert judged_images(count, found).tolist() == list(judged)


def test_no_more_images_are_judged_than_a_step_has() -> None:
    found = budget(blocks_of(160), 0)
    assert judged_images(256, found).tolist() == [253, 254, 255]


@pytest.mark.parametrize(
    ("name", "bits", "images"),
    [
        ("repapq", 8, 256), ("repapq", 6, 256), ("repapq", 4, 512), ("brecq", 4, 512),
        ("repquant", 6, 384), ("repquant", 4, 512), ("gptq", 4, 128),
    ],
)  # fmt: skip
def test_what_learns_few_bits_has_more_images(name: str, bits: int, images: int) -> None:
    assert create_calibrator(name).usual_num_samples(bits) == images
