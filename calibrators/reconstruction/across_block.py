"""Across-Block Calibration: learn every quantizer so that the outputs of block and stage stay close to float.

RepAPQ, "Towards Accurate Post-training Quantization for Reparameterized Models"
(https://arxiv.org/abs/2402.16121). Block by block, on the outputs of the quantized blocks before it,

    mean |block(x) - float block|  +  lambda * mean |rest of stage(block(x)) - float stage|

is minimised over activation scales, QPRep's gain and shift, biases and the rounding of the weights.
L1 throughout, because merged kernels have rare outliers that a squared error would serve first.

From the paper: L1, the stage term, the affine map. Reconstructed, for it does not say (docs/results.md
has the ablations): lambda and its normalisation, the float suffix, optimiser, rates and steps, what
is learned besides the affine map, and where the learning starts: activations at the best baseline, weights
of fewer than 8 bits in closed form (`reptrt.calibrators.second_order`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from reptrt.calibrators.base import Batches, BlockFit, CalibrationResult, Calibrator
from reptrt.calibrators.correct_biases import NUM_IMAGES, correct_biases
from reptrt.calibrators.guard import Guard
from reptrt.calibrators.histogram.best import CANDIDATES, with_biases
from reptrt.calibrators.importance import NO_IMPORTANCE, find_importance
from reptrt.calibrators.output_noise import decibels, guard_images
from reptrt.calibrators.progress import Progress, no_progress, share_of
from reptrt.calibrators.quantized.channel_affine import ChannelAffine
from reptrt.calibrators.quantized.quantized_model import QuantizedModel
from reptrt.calibrators.quantized.quantizers import TensorQuantizer
from reptrt.calibrators.quantized.run_nodes import Overrides, activation_nodes, float_overrides
from reptrt.calibrators.reconstruction.activation_cache import ActivationCache
from reptrt.calibrators.reconstruction.baseline_guard import (
    has_few_bits,
    start_at_best_baseline,
)
from reptrt.calibrators.reconstruction.block_inputs import BlockInputs, Statistics, fixed_batch
from reptrt.calibrators.reconstruction.blocks import Block, compared_outputs, find_blocks
from reptrt.calibrators.reconstruction.checkpoint import load_block, save_block
from reptrt.calibrators.reconstruction.course import COMPARISON, Course
from reptrt.calibrators.reconstruction.effort import (
    FEW_BITS,
    FEW_BITS_IMAGES,
    Budget,
    budget_of,
)
from reptrt.calibrators.reconstruction.fit_block import fit_block
from reptrt.calibrators.reconstruction.forecast import make_forecast
from reptrt.calibrators.reconstruction.reconstruct import LearnedBlock
from reptrt.calibrators.registry import register_calibrator
from reptrt.calibrators.second_order.fit_weights import fit_weights
from reptrt.calibrators.settings import Affine, Reconstruction

logger = logging.getLogger(__name__)

OBSERVING = 1.5
"""Times the network, what it costs to run it and to count every activation."""
CLIPPING, CORRECTING = 6.0, 4.0
"""Likewise of an image that clips of each tensor, and corrected biases, are chosen on."""
CHOOSING = 0.15
"""Seconds for the scales of one activation by all baselines."""
FITTING, FITTING_COLUMN = 0.15, 1e-3
"""Seconds for a weight of few bits in closed form, and for each of its columns."""


@register_calibrator
class AcrossBlockCalibrator(Calibrator):
    """RepAPQ: QPRep and Across-Block Calibration."""

    name = "repapq"
    summary = "RepAPQ: learns block by block from the absolute error of block and stage"
    default_num_samples = 256
    passes = 20

    def usual_num_samples(self, bits: int) -> int:
        """See `Calibrator.usual_num_samples`: more where codes are few."""
        usual = super().usual_num_samples(bits)
        return max(usual, FEW_BITS_IMAGES) if bits < FEW_BITS else usual

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
        float_network = float_overrides(model)
        guard = start_at_best_baseline(model, batches, chosen, progress)
        if has_few_bits(model):
            fit_weights(model, batches, self.settings.seed, progress)
            guard.take_if_better("gptq")
        elif not guard.is_fine:
            correct_biases(model, guard_images(batches), progress)
            guard.take_if_better(with_biases(guard.best))
        return guard, float_network

    def phases(self, model: QuantizedModel, batches: Batches, seconds: float) -> dict[str, float]:
        """What `start` does, as its progress calls it -> seconds it is expected to take.

        Args:
            model: the network.
            batches: calibration images.
            seconds: of the network for one image.
        """
        judged = sum(map(len, guard_images(batches)))
        found = {
            "observe activations": OBSERVING * seconds * _most_images(batches),
            "choose scales": CHOOSING * len(model.activation_quantizers),
            "compare baselines": seconds * judged * (1 + len(CANDIDATES)),
        }
        found["clip tensors"] = CLIPPING * seconds * min(judged, NUM_IMAGES)
        if has_few_bits(model):
            found["fit weights"] = seconds_to_fit(model)
        else:
            found["correct biases"] = CORRECTING * seconds * min(judged, NUM_IMAGES)
        return found

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
        budgets = self._budgets(model, blocks, batches, chosen)
        images = _most_images(batches)
        forecast = make_forecast(model, blocks, budgets, next(iter(batches)))
        network = sum(forecast.seconds[node] for node in activation_nodes(model.graph_module.graph))
        judged = 2 * sum(map(len, guard_images(batches)))  # in float, and as learned
        phases = {**self.phases(model, batches, network), COMPARISON: network * judged}
        bar = share_of(progress, self.name, 0.0, 1.0)
        course = Course(phases, blocks, budgets, images, forecast, bar)
        guard, float_network = self.start(model, batches, chosen, course.start)
        if self.settings.effort != "high" and guard.is_fine:
            course.end()
            found = decibels(guard.noise)
            why = f"not needed: {guard.best} has {found[guard.best]:.1f} dB at the outputs"
            return CalibrationResult(guard.best, {"Reconstruction": why}, compared=found)
        importance = NO_IMPORTANCE
        if chosen.loss == "fisher":
            made = [node for block in blocks for node in compared_outputs(block)]
            importance = find_importance(model, made, batches, float_network, self.settings.seed)
        course.begin()
        starts = grid_ends(model)
        with ActivationCache(self.settings.max_memory) as cache:
            block_inputs = BlockInputs(
                *(model, blocks, batches, cache, float_network, importance, chosen.correction)
            )
            fits = tuple(self._fit_blocks(model, block_inputs, chosen, budgets, course))
        method, compared = guard.keep_better(self.name)
        course.end()
        notes = {}
        if method != self.name:
            notes["Reconstruction"] = f"not kept: {method} is closer to float"
        return CalibrationResult(method, notes, blocks=fits, compared=compared, starts=starts)

    def _budgets(
        self,
        model: QuantizedModel,
        blocks: Sequence[Block],
        batches: Batches,
        chosen: Reconstruction,
    ) -> list[Budget]:
        images, fixed = _most_images(batches), fixed_batch(model.graph_module)
        quantizers = (*model.weight_quantizers.values(), *model.activation_quantizers.values())
        bits = min((quantizer.grid.num_bits for quantizer in quantizers), default=8)
        return [
            budget_of(blocks, index, images, fixed, self.settings, chosen, bits)
            for index in range(len(blocks))
        ]

    def _fit_blocks(
        self,
        model: QuantizedModel,
        block_inputs: BlockInputs,
        chosen: Reconstruction,
        budgets: Sequence[Budget],
        course: Course,
    ) -> list[BlockFit]:
        final: set[TensorQuantizer] = set()
        fits: list[BlockFit] = []
        for index, block in enumerate(block_inputs.blocks):
            statistics = block_inputs.pass_in_float(block)
            affines = choose_affines(model, block, statistics, chosen.affine)
            units = {
                block.layers[node]: size(deviation) for node, (_, deviation) in statistics.items()
            }
            learned = LearnedBlock(model, block, affines, units, chosen, final)
            fit = self._load(model, learned, index)
            before = None if fit is None else fit.steps
            if fit is None:
                # Seeded by block, so that a resumed run draws the same images.
                generator = torch.Generator().manual_seed(self.settings.seed * 100_003 + index)
                fit = fit_block(
                    learned, block_inputs, index, budgets[index], generator, course.step
                )
                logger.info("block %d of %d, %s", index + 1, len(block_inputs.blocks), fit)
                self._save(model, learned, fit, index)
            final |= learned.quantizers
            block_inputs.pass_quantized(block)
            course.finish(before)
            fits.append(fit)
        return fits

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


def seconds_to_fit(model: QuantizedModel) -> float:
    """What all weights of `model` are expected to take in closed form."""
    widths = [model.weight_of(layer)[0].numel() for layer in model.weight_quantizers]
    return sum(FITTING + FITTING_COLUMN * width for width in widths)


def grid_ends(model: QuantizedModel) -> dict[str, tuple[float, float]]:
    """Smallest and largest value of the grid of every point of activations that has one step."""
    return {
        name: (float(low * one.scale), float(high * one.scale))
        for name, one in model.activation_quantizers.items()
        if one.axis is None and one.is_uniform
        for low, high in [one.multiples]
    }


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


def _most_images(batches: Batches) -> int:
    """Number of calibration images; the last batch, which may be smaller, counts in full."""
    return len(batches) * len(next(iter(batches)))
