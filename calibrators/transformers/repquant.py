"""RepQuant: RepQ-ViT, with clipping and weights that are learned.

Li et al., "RepQuant: Towards Accurate Post-Training Quantization of Large Transformer Models via
Scale Reparameterization" (https://arxiv.org/abs/2402.05628). What it adds to RepQ-ViT: per-channel dual
clipping of LayerNorm outputs (`reptrt.calibrators.transformers.dual_clipping`), and quantized weight reconstruction behind
the reparameterization, on quantized inputs. There is no public code and we have not seen the formulas:
both are reconstructed. Weights are first fitted in closed form (`reptrt.calibrators.transformers.fitting_pass`), then learned
from there, by the block reconstruction that RepAPQ uses (`reptrt.calibrators.reconstruction.reconstruct`), with a
squared error on each residual branch, weighed by what the outputs depend on (docs/results.md has what was measured).
What quantizers inside a block read stays float at random while it learns, as in QDrop, and it learns to correct half
of the errors of those before it: all of them it would learn by heart.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch

from reptrt.calibrators.base import DEFAULT_SETTINGS, Batches
from reptrt.calibrators.guard import Guard
from reptrt.calibrators.output_noise import guard_images, output_noise
from reptrt.calibrators.progress import Progress
from reptrt.calibrators.quantized.quantized_model import QuantizedModel
from reptrt.calibrators.quantized.quantizers import TensorQuantizer
from reptrt.calibrators.quantized.run_nodes import Overrides, float_copy, float_overrides
from reptrt.calibrators.reconstruction.across_block import AcrossBlockCalibrator, seconds_to_fit
from reptrt.calibrators.registry import register_calibrator
from reptrt.calibrators.settings import Reconstruction, Settings
from reptrt.calibrators.transformers.dual_clipping import learn_thresholds
from reptrt.calibrators.transformers.fitting_pass import FittingPass
from reptrt.calibrators.transformers.scale_reparam import ChannelSite


@register_calibrator
class RepQuantCalibrator(AcrossBlockCalibrator):
    """RepQuant."""

    name = "repquant"
    summary = "RepQuant: RepQ-ViT with learned clipping and reconstructed weights"
    default_num_samples = 384
    passes = 100

    def __init__(self, settings: Settings = DEFAULT_SETTINGS) -> None:
        """As others, but for the effort `auto`, which is `high`: transformers of 4 bits gain slowly and for long."""
        super().__init__(
            replace(settings, effort="high") if settings.effort == "auto" else settings
        )

    def choose(self, reconstruction: Reconstruction) -> Reconstruction:
        """Measured winners for transformers, where the recipe does not say otherwise."""
        winners = {
            **{"loss": "fisher", "stage_weight": 0.0, "code_rate": 0.02, "units": "chains"},
            **{"float_inside": 0.5, "iterations": 100, "correction": 0.5},
        }
        said = reconstruction.model_fields_set
        update = {name: value for name, value in winners.items() if name not in said}
        return reconstruction.model_copy(update=update)

    def phases(self, model: QuantizedModel, batches: Batches, seconds: float) -> dict[str, float]:
        """See `AcrossBlockCalibrator.phases`."""
        return {"reparameterize": seconds_to_fit(model)}

    def start(
        self, model: QuantizedModel, batches: Batches, chosen: Reconstruction, progress: Progress
    ) -> tuple[Guard, Overrides]:
        """Reparameterize with learned clipping, and fit weights in closed form."""
        reference, folded = float_copy(model), copy.deepcopy(model)
        ClippingPass(model, folded, self.settings.seed).run(batches, progress)
        images = guard_images(batches)
        noise = {"gptq": output_noise(model, images, reference)}
        return Guard(model, reference, images, noise), float_overrides(model, folded)


class ClippingPass(FittingPass):
    """The pass of `gptq`, with learned dual clipping."""

    def __init__(self, model: QuantizedModel, folded: QuantizedModel, seed: int) -> None:
        super().__init__(model, folded, seed)
        self._generator = torch.Generator().manual_seed(seed)

    def fit_channels(self, site: ChannelSite, channels: TensorQuantizer, x: torch.Tensor) -> None:
        """Percentiles, then learned thresholds."""
        super().fit_channels(site, channels, x)
        if not site.keeps_zero:
            layers = [self.model.placement.layers[reader.name] for reader in site.readers]
            weights = [self.model.weight_of(layer) for layer in layers]
            learn_thresholds(channels, x, weights, self._generator)
