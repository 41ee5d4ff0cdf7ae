"""Across-Block Calibration: learn every quantizer so that the outputs of block and stage stay close to float.

RepAPQ, "Towards Accurate Post-training Quantization for Reparameterized Models"
(https://arxiv.org/abs/2402.16121). Block by block, on the outputs of the quantized blocks before it,

    mean |block(x) - float block|  +  lambda * mean |rest of stage(block(x)) - float stage|

is minimised over activation scales, QPRep's gain and shift, biases and the rounding of the weights.
L1 throughout, because merged kernels have rare outliers that a squared error would serve first.

From the paper: L1, the stage term, the affine map. Reconstructed, for it does not say (docs/results.md
has the ablations): lambda and its normalisation, the float suffix, optimiser, rates and steps, what
is learned besides the affine map, and where the learning starts: activations at the best baseline, weights
of fewer than 8 bits clipped where their squared error is least.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from reptrt.calibrators.base import (
    PER_MILLE,
    Batches,
    BlockFit,
    CalibrationResult,
    Calibrator,
    Progress,
    no_progress,
    share_of,
)
from reptrt.calibrators.quantized.channel_affine import ChannelAffine
from reptrt.calibrators.quantized.quantized_model import QuantizedModel
from reptrt.calibrators.quantized.quantizers import TensorQuantizer
from reptrt.calibrators.quantized.run_nodes import Overrides, float_overrides
from reptrt.calibrators.reconstruction.activation_cache import ActivationCache
from reptrt.calibrators.reconstruction.baseline_guard import Guard, start_at_best_baseline
from reptrt.calibrators.reconstruction.block_inputs import BlockInputs, Statistics
from reptrt.calibrators.reconstruction.blocks import Block, find_blocks, rest_of_stage
from reptrt.calibrators.reconstruction.checkpoint import load_block, save_block
from reptrt.calibrators.reconstruction.objective import BlockDistances
from reptrt.calibrators.reconstruction.reconstruct import (
    LearnedBlock,
    objective,
    probe,
    reconstruct,
)
from reptrt.calibrators.registry import register_calibrator
from reptrt.calibrators.settings import Affine, Reconstruction
from reptrt.calibrators.state import restore_tensors, save_tensors

logger = logging.getLogger(__name__)

START_SHARE = 0.1
"""Of the progress bar: what the baselines take of the time, roughly."""


@register_calibrator
class AcrossBlockCalibrator(Calibrator):
    """RepAPQ: QPRep and Across-Block Calibration."""

    name = "repapq"
    summary = "RepAPQ: learns block by block from the absolute error of block and stage"
    default_num_samples = 256

    def choose(self, reconstruction: Reconstruction) -> Reconstruction:
        """Settings of this method; RepAPQ's are the defaults."""
        return reconstruction

    def start(
        self, model: QuantizedModel, batches: Batches, chosen: Reconstruction, progress: Progress
    ) -> tuple[Guard, Overrides]:
        """Calibrate `model` without learning: where the learning starts, and what it must beat.

        Returns:
            A guard that compares the result with this start, and overrides for the float network.
        """
        guard = start_at_best_baseline(model, batches, chosen, progress)
        return guard, float_overrides(model)

    def calibrate(
        self,
        model: QuantizedModel,
        batches: Batches,
        progress: Progress = no_progress,
    ) -> CalibrationResult:
        """See `Calibrator.calibrate`. Finished blocks are kept in `settings.checkpoint`.

        Raises:
            UnknownBlockError: a declared block or stage matches no layer.
            CacheDiskError: activations exceed `settings.max_memory`, and the disk.
        """
        chosen = self.choose(self.settings.reconstruction)
        blocks = find_blocks(model, chosen.blocks, chosen.stages, chosen.units)
        model.graph_module.requires_grad_(False)
        start = share_of(progress, self.name, 0.0, START_SHARE)
        guard, float_network = self.start(model, batches, chosen, start)
        learning = share_of(progress, self.name, START_SHARE, 1.0)
        with ActivationCache(self.settings.max_memory) as cache:
            block_inputs = BlockInputs(model, blocks, batches, cache, float_network)
            fits = tuple(self._fit_blocks(model, block_inputs, chosen, learning))
        method, compared = guard.keep_better(self.name)
        notes = {}
        if method != self.name:
            notes["Reconstruction"] = f"not kept: {method} is closer to float"
        return CalibrationResult(method, notes, blocks=fits, compared=compared)

    def _fit_blocks(
        self,
        model: QuantizedModel,
        block_inputs: BlockInputs,
        chosen: Reconstruction,
        progress: Progress,
    ) -> list[BlockFit]:
        if block_inputs.batch_size is not None:
            chosen = chosen.model_copy(update={"batch_size": block_inputs.batch_size})
        final: set[TensorQuantizer] = set()
        fits: list[BlockFit] = []
        steps = Steps(block_inputs.blocks, chosen.iterations, progress)
        for index, block in enumerate(block_inputs.blocks):
            statistics = block_inputs.statistics(block)
            affines = choose_affines(model, block, statistics, chosen.affine)
            units = {
                block.layers[node]: size(deviation) for node, (_, deviation) in statistics.items()
            }
            learned = LearnedBlock(model, block, affines, units, chosen, final)
            block_inputs.pass_in_float(block)
            fit = self._load(model, learned, index)
            if fit is None:
                fit = self._fit(model, learned, block_inputs, index, chosen, steps)
                self._save(model, learned, fit, index)
            steps.finish(index)
            final |= learned.quantizers
            block_inputs.pass_quantized(block)
            fits.append(fit)
        return fits

    def _fit(
        self,
        model: QuantizedModel,
        learned: LearnedBlock,
        block_inputs: BlockInputs,
        index: int,
        chosen: Reconstruction,
        steps: Steps,
    ) -> BlockFit:
        block, started = block_inputs.blocks[index], time.monotonic()
        # Seeded by block, so that a resumed run draws the same images.
        generator = torch.Generator().manual_seed(self.settings.seed * 100_003 + index)
        committed = BlockDistances(model, {}, block_inputs, index, chosen, generator)
        images = probe(block_inputs.num_samples, chosen)
        with torch.no_grad():
            first = committed(images)
        reconstruct(
            learned,
            BlockDistances(model, learned.overrides, block_inputs, index, chosen, generator),
            block_inputs.num_samples,
            chosen,
            generator,
            lambda: steps.step(index),
        )
        before = save_tensors(model, learned.tensor_names)
        learned.commit()
        with torch.no_grad():
            last = committed(images)
        weight = chosen.stage_weight
        if not objective(last, first, weight) <= objective(first, first, weight):  # NaN too
            restore_tensors(model, before)
            last = first
        seconds = round(time.monotonic() - started, 2)
        fit = BlockFit(block.name, block.stage, float(first.block), float(last.block), seconds)
        logger.info("block %d of %d, %s", index + 1, len(block_inputs.blocks), fit)
        return fit

    def _load(self, model: QuantizedModel, learned: LearnedBlock, index: int) -> BlockFit | None:
        file = self._file(index)
        return None if file is None else load_block(model, learned.tensor_names, file)

    def _save(
        self, model: QuantizedModel, learned: LearnedBlock, fit: BlockFit, index: int
    ) -> None:
        file = self._file(index)
        if file is not None:
            save_block(model, learned.tensor_names, fit, file)

    def _file(self, index: int) -> Path | None:
        folder = self.settings.checkpoint
        return None if folder is None else folder / f"block-{index:03}.safetensors"


@register_calibrator
class BlockCalibrator(AcrossBlockCalibrator):
    """Block reconstruction with a squared error, after BRECQ (arXiv:2102.05426)."""

    name = "brecq"
    summary = "like repapq, but the squared error of the block alone, after BRECQ"

    def choose(self, reconstruction: Reconstruction) -> Reconstruction:
        """L2, no stage term; quantizers, rounding and steps as in RepAPQ, so the loss is compared."""
        return reconstruction.model_copy(update={"loss": "l2", "stage_weight": 0.0})


@register_calibrator
class QDropCalibrator(BlockCalibrator):
    """Block reconstruction on a mixture of float and quantized inputs, QDrop (arXiv:2203.05740)."""

    name = "qdrop"
    summary = "like brecq, on inputs half of which are the float network's (QDrop)"

    def choose(self, reconstruction: Reconstruction) -> Reconstruction:
        """BRECQ's, with probability 1/2 of a float input element."""
        return super().choose(reconstruction).model_copy(update={"float_inputs": 0.5})


def choose_affines(
    model: QuantizedModel, block: Block, statistics: Statistics, start: Affine
) -> dict[str, ChannelAffine]:
    """QPRep's initial affine map of every layer of `block`."""
    affines: dict[str, ChannelAffine] = {}
    for node_name, layer in block.layers.items():
        scale = model.weight_quantizers[layer].scale
        identity = ChannelAffine(torch.ones_like(scale), torch.zeros_like(scale))
        if start == "dense_branch":
            affines[layer] = model.branch_affines.get(layer, identity)
        elif start == "statistics":
            affines[layer] = ChannelAffine.from_statistics(*statistics[node_name])
        else:
            affines[layer] = identity
    return affines


def size(deviation: torch.Tensor) -> float:
    """Typical size of an output whose channels have this `deviation` [out]; 1 if it is dead."""
    return float(deviation.mean()) or 1.0


class Steps:
    """One progress bar for all blocks, whose speed is even: a step counts what it computes."""

    def __init__(self, blocks: Sequence[Block], iterations: int, progress: Progress) -> None:
        self._progress, self._iterations = progress, max(1, iterations)
        rests = [rest_of_stage(blocks, index) for index in range(len(blocks))]
        self._costs = [
            _num_elements(block) + (0 if rest is None else _num_elements(rest))
            for block, rest in zip(blocks, rests, strict=True)
        ]
        self._block_steps = 0

    def step(self, index: int) -> None:
        """One optimiser step of block `index` is done."""
        self._block_steps += 1
        self._show(index, self._block_steps / self._iterations)

    def finish(self, index: int) -> None:
        """Block `index` is done."""
        self._block_steps = 0
        self._show(index, 1.0)

    def _show(self, index: int, share: float) -> None:
        done = sum(self._costs[:index]) + share * self._costs[index]
        self._progress("blocks", round(PER_MILLE * done / sum(self._costs)), PER_MILLE)


def _num_elements(block: Block) -> int:
    """Elements that one image costs."""
    shapes = [getattr(node.meta["val"], "shape", ()) for node in block.nodes]
    return sum(math.prod(d for d in shape[1:] if isinstance(d, int)) for shape in shapes)
