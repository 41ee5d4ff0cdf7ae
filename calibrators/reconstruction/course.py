"""How far a calibration has come: the time that is behind it, over that and what is still expected.

How long the parts of the network take is known before anything else (`reptrt.calibrators.reconstruction.forecast`). What
later blocks take is corrected by what those so far took. Only what is shown depends on it; what a run decides is counted
(`reptrt.calibrators.reconstruction.work`), so that it decides the same anywhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from torch import fx

from reptrt.calibrators.progress import PER_MILLE, Progress
from reptrt.calibrators.quantized.quantized_model import is_activation_call
from reptrt.calibrators.reconstruction.blocks import Block, rest_of_stage
from reptrt.calibrators.reconstruction.closed_forms import FACTORS
from reptrt.calibrators.reconstruction.effort import Budget
from reptrt.calibrators.reconstruction.forecast import Forecast, Seconds

PASSES = 2
"""Of all images through a block: in float, and as it was quantized."""

STEP, STEP_BEHIND = 3, 2
"""Passes that a step costs: forward and both gradients; behind the block weights need none."""

WEIGHTS = 5
"""Times the quantizer of a weight, what a step takes for that weight: forward, gradient and Adam."""

CLOSED_FORMS = 6
"""Passes of the judged images, besides those for each factor and layer."""

COMPARISON = "compare with the baselines"
"""What follows the last block."""


class Course:
    """One progress bar for all that a calibration does.

    How many steps later blocks take is not known: what is forecast for them is corrected by what the blocks so far
    took of what was forecast for those.

    Args:
        phases: what comes before the first block, as its progress calls it -> seconds expected; and `COMPARISON`,
            which comes behind the last.
        blocks: of the network.
        budgets: of each.
        num_samples: calibration images.
        forecast: of the same blocks.
        progress: of the bar, called as work advances.
        clock: seconds.
    """

    def __init__(
        self,
        phases: Mapping[str, float],
        blocks: Sequence[Block],
        budgets: Sequence[Budget],
        num_samples: int,
        forecast: Forecast,
        progress: Progress,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._progress, self._clock = progress, clock
        self._phases, self._phase = dict(phases), ""
        self._comparison = self._phases.pop(COMPARISON, 0.0)
        self._started = self._part_started = clock()
        self._step, self._others, self._allowed = [], [], []
        seconds = forecast.seconds
        for index, (block, budget) in enumerate(zip(blocks, budgets, strict=True)):
            rest = rest_of_stage(blocks, index)
            own, behind = _sum(seconds, block), 0.0 if rest is None else _sum(seconds, rest)
            step = budget.batch_size * (STEP * own + STEP_BEHIND * behind / budget.stage_every)
            step += WEIGHTS * sum(seconds.get(weight, 0.0) for weight in _weights(block))
            judged = min(budget.batch_size, budget.held_out or num_samples)
            points = sum(map(is_activation_call, block.nodes))
            tries = len(FACTORS) * points + len(block.layers) + CLOSED_FORMS
            self._step.append(step)
            self._others.append(own * (PASSES * num_samples + budget.closed_forms * tries * judged))
            self._allowed.append(step * sum(budget.rounds))
        both = zip(forecast.shares, self._allowed, strict=True)
        self._planned = [share * allowed for share, allowed in both]
        self._finished = self._steps = 0
        self._learned = self._taken = self._expected = 0.0
        self._shown = 0

    def start(self, description: str, done: int, total: int) -> None:
        """Progress of a phase before the first block."""
        if description != self._phase:
            self._phases.pop(self._phase, None)
            self._phase, self._part_started = description, self._clock()
        if description in self._phases and done > 0:
            spent = self._clock() - self._part_started
            self._phases[description] = spent * (total - done) / done
        self._show()

    def begin(self) -> None:
        """All phases are done: blocks follow."""
        self._phases.clear()
        self._part_started = self._clock()

    def step(self) -> None:
        """One optimiser step of the present block is done."""
        self._steps += 1
        self._show()

    def finish(self, steps: int | None = None) -> None:
        """The present block is done.

        Args:
            steps: that an earlier run took for it; None: those of `step`.
        """
        now, index = self._clock(), self._finished
        if steps is None:
            self._taken += now - self._part_started
            self._expected += self._others[index] + self._steps * self._step[index]
        self._learned += (self._steps if steps is None else steps) * self._step[index]
        self._part_started, self._steps = now, 0
        self._finished += 1
        self._show()

    def end(self) -> None:
        """All is done, the comparison too; blocks that did not have their turn need none."""
        self._phases.clear()
        self._comparison, self._finished = 0.0, len(self._step)
        self._show()

    def _left(self) -> float:
        """Seconds that are expected from now on."""
        apart = sum(self._phases.values()) + self._comparison
        index = self._finished
        if index == len(self._step):
            return apart
        behind, weight = sum(self._planned[:index]), max(self._planned)
        more = (self._learned + weight) / (behind + weight or 1)
        steps = list(map(min, self._allowed, (more * planned for planned in self._planned)))
        own = self._others[index] + steps[index]
        rest = sum(self._others[index + 1 :]) + sum(steps[index + 1 :])
        # The present block counts as one that was as fast as expected.
        slower = (self._taken + own) / (self._expected + own or 1)
        spent = 0.0 if self._phases else self._clock() - self._part_started
        return apart + max(slower * own - spent, 0.0) + slower * rest

    def _show(self) -> None:
        spent, left = self._clock() - self._started, self._left()
        self._shown = max(self._shown, round(PER_MILLE * spent / (spent + left or 1)))
        self._progress("", self._shown, PER_MILLE)


def _sum(seconds: Seconds, block: Block) -> float:
    return sum(seconds.get(node, 0.0) for node in block.nodes)


def _weights(block: Block) -> Iterator[fx.Node]:
    """What the layers of `block` read as their weights."""
    for node in block.nodes:
        if node.name in block.layers:
            weight = node.args[1]
            assert isinstance(weight, fx.Node)
            yield weight
