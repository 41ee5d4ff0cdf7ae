"""`gptq`: weights, biases and ranges in closed form, for transformers and convolutional networks.

Frantar et al., "GPTQ" (https://arxiv.org/abs/2210.17323), with clips chosen by what they do to a layer's
outputs (`reptrt.calibrators.second_order`). Where linears read LayerNorms, in RepQ-ViT's pass; elsewhere behind the
best baseline's activations, and dropped for that baseline if it is closer to float. Nothing is learned:
it takes seconds, and `repquant`, and below 8 bits `repapq`, start from it.
"""

from __future__ import annotations

import copy

from reptrt.calibrators.base import Batches, CalibrationResult, Calibrator
from reptrt.calibrators.progress import Progress, no_progress
from reptrt.calibrators.quantized.quantized_model import QuantizedModel
from reptrt.calibrators.reconstruction.baseline_guard import start_at_best_baseline
from reptrt.calibrators.registry import register_calibrator
from reptrt.calibrators.second_order.fit_weights import fit_weights
from reptrt.calibrators.transformers.fitting_pass import FittingPass
from reptrt.calibrators.transformers.scale_reparam import find_norm_sites


@register_calibrator
class GptqCalibrator(Calibrator):
    """Clip by the output, round by GPTQ, correct biases."""

    name = "gptq"
    summary = "GPTQ: weights rounded column by column on quantized inputs; no training"

    def calibrate(
        self,
        model: QuantizedModel,
        batches: Batches,
        progress: Progress = no_progress,
    ) -> CalibrationResult:
        """See `Calibrator.calibrate`. Images are held in memory together, at one node at a time."""
        if find_norm_sites(model):
            fitting = FittingPass(model, copy.deepcopy(model), self.settings.seed)
            return CalibrationResult(self.name, fitting.run(batches, progress))
        guard = start_at_best_baseline(model, batches, self.settings.reconstruction, progress)
        fit_weights(model, batches, self.settings.seed, progress)
        method, compared = guard.keep_better(self.name)
        return CalibrationResult(method, compared=compared)
