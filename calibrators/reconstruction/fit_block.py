"""Fit one block: closed forms, then learning where they do not suffice, and nothing where both do harm."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch

from reptrt.calibrators.base import BlockFit
from reptrt.calibrators.reconstruction.block_inputs import BlockInputs
from reptrt.calibrators.reconstruction.closed_forms import fit_closed_forms, own_snr
from reptrt.calibrators.reconstruction.effort import Budget, judged_images
from reptrt.calibrators.reconstruction.objective import BlockDistances
from reptrt.calibrators.reconstruction.reconstruct import LearnedBlock, objective, reconstruct
from reptrt.calibrators.state import restore_tensors, save_tensors


def fit_block(
    learned: LearnedBlock,
    block_inputs: BlockInputs,
    index: int,
    budget: Budget,
    generator: torch.Generator,
    step_done: Callable[[], None],
) -> BlockFit:
    """Fit block `index` and write the result into the model; one that is no better leaves it as it was.

    Args:
        learned: the block's learnable parts.
        block_inputs: stands before the block, with its float outputs computed.
        index: of the block.
        budget: what it may spend.
        generator: of every random choice.
        step_done: called after each step.
    """
    started, block = time.monotonic(), block_inputs.blocks[index]
    model, chosen = learned.model, learned.settings
    judged = judged_images(block_inputs.num_samples, budget)
    committed = BlockDistances(model, {}, block_inputs, index, chosen, generator)
    distances = BlockDistances(model, learned.overrides, block_inputs, index, chosen, generator)
    start = learned.snapshot()
    snr = _fit_closed_forms(learned, distances, judged, budget) if budget.closed_forms else None
    learns = bool(budget.rounds) and (snr is None or not snr >= budget.enough_db)
    with torch.no_grad():  # a stage in which no block learns is not computed
        first = committed(judged, stage=learns)
    steps = 0
    if learns:
        samples = block_inputs.num_samples
        steps = reconstruct(learned, distances, samples, budget, generator, step_done)
    last, reason = first, _reason(snr, steps, budget)
    if all(map(torch.equal, start, learned.snapshot())):
        reason = f"{reason}; nothing helped"
    else:
        before = save_tensors(model, learned.tensor_names)
        learned.commit()
        with torch.no_grad():
            last = committed(judged, stage=learns)
        weight = chosen.stage_weight
        if not objective(last, first, weight) <= objective(first, first, weight):  # NaN too
            restore_tensors(model, before)
            last, reason = first, f"{reason}; nothing helped"
    return BlockFit(
        block.name,
        block.stage,
        float(first.block),
        float(last.block),
        round(time.monotonic() - started, 2),
        steps,
        budget.batch_size,
        None if snr is None or not math.isfinite(snr) else round(snr, 1),
        reason,
    )


def _fit_closed_forms(
    learned: LearnedBlock, distances: BlockDistances, judged: torch.Tensor, budget: Budget
) -> float:
    """Apply the closed forms where the judged images gain by them; SNR of the block alone on these."""
    start, sample = learned.snapshot(), distances.sample(judged, stage=False)
    with torch.no_grad():
        first = distances.measure(sample).block
        fit_closed_forms(learned, distances, torch.arange(len(judged)))
        if not distances.measure(sample).block <= first:  # NaN too
            learned.restore(start)
    return own_snr(distances, sample)


def _reason(snr: float | None, steps: int, budget: Budget) -> str:
    """Why the block took no more steps, for people."""
    if snr is not None and snr >= budget.enough_db:
        return f"{snr:.1f} dB alone, {budget.enough_db:.1f} dB suffice"
    if steps == sum(budget.rounds):
        return "all steps" if steps else "no steps asked for"
    if not steps:
        return "nothing to learn"
    return "a round gained too little"
