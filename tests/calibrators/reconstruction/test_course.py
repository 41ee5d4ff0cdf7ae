"""The bar of a calibration: the time behind it over that and what is left."""

from __future__ import annotations

import pytest
import torch
from torch import fx

from reptrt.calibrators.reconstruction.blocks import Block, find_blocks
from reptrt.calibrators.reconstruction.course import COMPARISON, Course
from reptrt.calibrators.reconstruction.effort import Budget
from reptrt.calibrators.reconstruction.forecast import USUAL_SHARE, Forecast
from reptrt.models.graph import trace
from tests.tiny_networks import quantized, randomize

IMAGES = 32


def blocks_of(count: int) -> list[Block]:
    layers = [torch.nn.Conv2d(3, 3, 3, padding=1) for _ in range(count)]
    return find_blocks(quantized(trace(randomize(torch.nn.Sequential(*layers)), (8, 8)), (8, 8)))


class Run:
    """A calibration whose blocks take `slower` times what is expected, on a clock of its own."""

    def __init__(
        self,
        blocks: list[Block],
        rounds: tuple[int, ...],
        phases: dict[str, float],
        slower: float = 1.0,
    ) -> None:
        self.now, self.shown, self.slower = 0.0, [(0.0, 0.0)], slower
        seconds: dict[fx.Node, float] = {n: 1.0 for block in blocks for n in block.nodes}
        budgets = [Budget(4, 8, rounds, 1_000_000, closed_forms=False) for _ in blocks]
        forecast = Forecast(seconds, [USUAL_SHARE if len(rounds) > 1 else 1.0] * len(blocks))
        self.course = Course(
            phases, blocks, budgets, IMAGES, forecast, self._show, lambda: self.now
        )
        self.own = [float(len(block.nodes)) for block in blocks]

    def _show(self, _: str, done: int, total: int) -> None:
        self.shown.append((self.now, done / total))

    def phase(self, name: str, seconds: float) -> None:
        for done in range(1, 5):
            self.now += seconds / 4
            self.course.start(name, done, 4)

    def block(self, index: int, steps: int) -> None:
        own = self.slower * self.own[index]
        for _ in range(steps):
            self.now += own * 4 * 3
            self.course.step()
        self.now += own * 2 * IMAGES
        self.course.finish()

    def promised(self, share: float) -> float:
        """Time left as promised after `share` of the run, over the time that was left."""
        end = self.shown[-1][0]
        at, shown = next(one for one in self.shown if one[0] >= share * end and one[1])
        return (at / shown - at) / (end - at)


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.75])
@pytest.mark.parametrize("slower", [0.5, 1.0, 2.0])
def test_the_time_left_is_told_wherever_it_goes(share: float, slower: float) -> None:
    run = Run(blocks_of(20), (10,), {"observe": 500.0, "choose": 500.0}, slower)
    run.phase("observe", 700.0)
    run.phase("choose", 400.0)
    run.course.begin()
    for index in range(20):
        run.block(index, 10)
    assert run.shown[-1][1] == 1.0
    assert [one for _, one in run.shown] == sorted(one for _, one in run.shown)
    if slower == 1.0 or share >= 0.5:
        assert run.promised(share) == pytest.approx(1.0, abs=0.3)


@pytest.mark.parametrize("steps", [0, 4, 10])
def test_the_bar_rises_to_the_end_whatever_blocks_take(steps: int) -> None:
    run = Run(blocks_of(5), (4, 6), {})
    run.course.begin()
    for index in range(5):
        run.block(index, steps)
    shown = [one for _, one in run.shown]
    assert shown == sorted(shown)
    assert shown[-1] == 1.0
    assert 0 < shown[1] < 0.7


def test_a_phase_that_is_left_out_is_not_waited_for() -> None:
    run = Run(blocks_of(2), (4,), {"observe": 10.0, "never": 1e9})
    run.phase("observe", 10.0)
    run.course.begin()
    run.block(0, 4)
    assert run.shown[-1][1] == pytest.approx(0.5, abs=0.1)


def test_the_comparison_behind_the_last_block_counts() -> None:
    run = Run(blocks_of(4), (10,), {COMPARISON: 1000.0})
    run.course.begin()
    for index in range(4):
        run.block(index, 10)
    assert run.shown[-1][1] == pytest.approx(run.now / (run.now + 1000.0), abs=0.001)
    run.course.end()
    assert run.shown[-1][1] == 1.0


def test_blocks_of_an_earlier_run_cost_no_time() -> None:
    run = Run(blocks_of(4), (10,), {})
    run.course.begin()
    for _ in range(2):
        run.course.finish(10)
    run.block(2, 10)
    assert run.shown[-1][1] == pytest.approx(0.5, abs=0.02)


def test_a_run_that_ends_before_its_blocks_is_complete() -> None:
    run = Run(blocks_of(3), (10,), {"observe": 5.0, "choose": 5.0, COMPARISON: 5.0})
    run.phase("observe", 5.0)
    run.course.end()
    assert run.shown[-1] == (5.0, 1.0)
