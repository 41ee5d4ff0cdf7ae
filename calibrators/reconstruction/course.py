"""How far a calibration has come, in the work that it does: what is behind it, over that and what is still expected."""

from __future__ import annotations

from collections.abc import Sequence

from reptrt.calibrators.progress import PER_MILLE, Progress, share_of
from reptrt.calibrators.reconstruction.blocks import Block, rest_of_stage
from reptrt.calibrators.reconstruction.effort import Budget
from reptrt.calibrators.reconstruction.work import work

PASSES = 2
"""Of all images through a block: in float, and as it was quantized."""

STEP, STEP_BEHIND = 3, 2
"""Passes that a step costs: forward and both gradients; behind the block weights need none."""

START_PASSES = 1.5
"""Of all images, before the first block: every activation is observed, and the baselines are compared."""

EXPECTED = 0.4
"""Share of the allowed steps that a block of several rounds takes, before there is a block that tells; one round
takes them all."""


class Course:
    """One progress bar for all blocks, whose speed is even.

    How many steps later blocks take is not known: they are expected to take the share of those allowed that
    the blocks so far took.

    Args:
        blocks: of the network.
        budgets: of each.
        num_samples: calibration images.
        name: of the bar.
        progress: called as work advances.

    Attributes:
        start: progress of what comes before the first block.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        budgets: Sequence[Budget],
        num_samples: int,
        name: str,
        progress: Progress,
    ) -> None:
        costs = [work(block.nodes) for block in blocks]
        rests = [rest_of_stage(blocks, index) for index in range(len(blocks))]
        behind = [0 if rest is None else work(rest.nodes) for rest in rests]
        self._passes = [PASSES * num_samples * cost for cost in costs]
        self._step = [
            budget.batch_size * (STEP * cost + STEP_BEHIND * rest / budget.stage_every)
            for budget, cost, rest in zip(budgets, costs, behind, strict=True)
        ]
        self._allowed = [
            sum(budget.rounds) * step for budget, step in zip(budgets, self._step, strict=True)
        ]
        self._expected = EXPECTED if any(len(one.rounds) > 1 for one in budgets) else 1.0
        self._finished = self._steps = 0
        self._learned = 0.0
        before = START_PASSES * num_samples * sum(costs)
        share = before / (before + self._left() or 1)
        self.start = share_of(progress, name, 0.0, share)
        self._progress = share_of(progress, name, share, 1.0)
        self._shown = 0

    def step(self) -> None:
        """One optimiser step of the present block is done."""
        self._steps += 1
        self._show()

    def finish(self) -> None:
        """The present block is done."""
        self._learned += self._steps * self._step[self._finished]
        self._steps = 0
        self._finished += 1
        self._show()

    def _left(self) -> float:
        """Work that is expected of the blocks from the present one on."""
        behind, weight = sum(self._allowed[: self._finished]), max(self._allowed, default=0)
        share = (self._learned + self._expected * weight) / (behind + weight or 1)
        return sum(self._passes[self._finished :]) + share * sum(self._allowed[self._finished :])

    def _show(self) -> None:
        now = 0.0
        if self._finished < len(self._step):
            now = self._steps * self._step[self._finished]
        done = sum(self._passes[: self._finished]) + self._learned + now
        left = max(self._left() - now, 0.0)
        self._shown = max(self._shown, round(PER_MILLE * done / (done + left or 1)))
        self._progress("", self._shown, PER_MILLE)
