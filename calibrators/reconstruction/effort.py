"""How much one block may learn: less where the closed forms have done enough, or where learning has stopped to help.

Our own; the constants are the winners of docs/effort.md. A step holds as many images as have `POSITIONS`, for a
gradient is a mean over positions, not over images. A block whose own SNR on held-out images reaches its share of
what the outputs need does not learn at all: noises of blocks add up, so each of n blocks may make 1/n of it. Others
learn in rounds, each with a learning rate that falls to 0, until one gains too little on the held-out images. Below
8 bits, where learning gains slowly and for long, all steps are one round; below 6 there are more of them, of more images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch

from reptrt.calibrators.reconstruction.blocks import Block, rest_of_stage
from reptrt.calibrators.reconstruction.work import positions, work
from reptrt.calibrators.settings import Reconstruction, Settings

POSITIONS = 16_384
"""Of one step; a transformer's batch of 32 images has 6,300 tokens."""

FEWEST_IMAGES = 3
"""Of one step: one image alone has the colours of one scene."""

HELD_OUT = 8
"""Images that no step sees: they say when to stop."""

FEW_BITS, MORE = 6, 4
"""With fewer bits a step has that many times the positions, and that many times the images are held out: codes lie far
apart there, and what a few images say does not hold for others."""

FEW_BITS_IMAGES = 512
"""Calibration images with so few bits, where there are that many: what is learned from 256 holds for others less."""

FEW_BITS_STEPS = 120
"""Of a block with so few bits, unless a recipe says how many: it learns for longer."""

ROUNDS = (Fraction(1, 5), Fraction(3, 10), Fraction(1, 2))
"""Shares of the steps; a block's first round is short, since it may be the last."""

LEAST_GAIN = 0.01
"""Of the objective on held-out images, by a round that is worth another one."""

MARGIN_DB = 3.0
"""A block's share of the noise may be twice 1/n: neighbours do not all reach the outputs in full."""

LONG_SUFFIX, RARELY = 2.0, 4
"""A rest of the stage that costs more than that many times the block takes part in every fourth step only."""


@dataclass(frozen=True)
class Budget:
    """What one block may spend.

    Attributes:
        batch_size: images of a step.
        held_out: images on which the block is judged, the last of all; 0 judges it on those of a step.
        rounds: steps of each round; the learning rate falls to 0 in each.
        stage_every: steps from one with the stage term to the next.
        enough_db: SNR of the block alone that needs no learning.
        closed_forms: whether the closed forms come first.
    """

    batch_size: int
    held_out: int
    rounds: tuple[int, ...]
    stage_every: int = 1
    enough_db: float = math.inf
    closed_forms: bool = True


def budget_of(
    blocks: Sequence[Block],
    index: int,
    num_samples: int,
    fixed: int | None,
    settings: Settings,
    chosen: Reconstruction,
    bits: int,
) -> Budget:
    """What block `index` of `blocks` may spend.

    Args:
        blocks: of the network, in order.
        index: of the block.
        num_samples: calibration images.
        fixed: images that the graph takes at once; None for any number.
        settings: effort, and the SNR that the outputs need.
        chosen: most steps, most images of a step, and whether the stage takes part.
        bits: the fewest of the network's codes.
    """
    if settings.effort == "high":
        return Budget(
            fixed or chosen.batch_size, 0, (most_steps(chosen, bits),), closed_forms=False
        )
    block = blocks[index]
    more = MORE if bits < FEW_BITS else 1
    enough = max(FEWEST_IMAGES, math.ceil(more * POSITIONS / positions(block.nodes)))
    held_out = fixed or min(more * HELD_OUT, num_samples // 4)
    rest = rest_of_stage(blocks, index) if chosen.stage_weight else None
    is_soft = chosen.rounding == "adaround"  # its weights are float until they are decided
    long_suffix = rest is not None and work(rest.nodes) > LONG_SUFFIX * work(block.nodes)
    return Budget(
        fixed or min(chosen.batch_size, enough),
        held_out if 2 * held_out <= num_samples else 0,
        () if settings.effort == "low" else rounds_of(chosen, bits),
        RARELY if long_suffix else 1,
        math.inf if is_soft else enough_snr(settings.target_snr, len(blocks)),
        closed_forms=not is_soft,
    )


def enough_snr(target_snr: float, num_blocks: int) -> float:
    """SNR in dB of a block alone that leaves the outputs `target_snr`, if all `num_blocks` have it."""
    return target_snr + 10 * math.log10(num_blocks) - MARGIN_DB


def rounds_of(chosen: Reconstruction, bits: int) -> tuple[int, ...]:
    """Steps of each round, none of them 0; below 8 bits there is one, and AdaRound's variables settle in one only."""
    if bits < 8 or chosen.rounding == "adaround":
        steps = most_steps(chosen, bits)
        return (steps,) if steps else ()
    ends = [round(sum(ROUNDS[: n + 1]) * chosen.iterations) for n in range(len(ROUNDS))]
    rounds = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    return tuple(count for count in rounds if count)


def most_steps(chosen: Reconstruction, bits: int) -> int:
    """Most steps of a block: those that are asked for, else as many as so few `bits` need."""
    is_said = bits >= FEW_BITS or "iterations" in chosen.model_fields_set
    return chosen.iterations if is_said else FEW_BITS_STEPS


def judged_images(num_samples: int, budget: Budget) -> torch.Tensor:
    """Indices of the images on which a block is judged, no more than a step has: [n]."""
    count = min(budget.batch_size, budget.held_out or num_samples)
    first = num_samples - count if budget.held_out else 0
    return torch.arange(first, first + count)
