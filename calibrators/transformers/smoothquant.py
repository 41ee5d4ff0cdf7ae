"""SmoothQuant: divide activations, and multiply weights, by a factor per channel. For comparison.

Xiao et al. (https://arxiv.org/abs/2211.10438), eq. 4: behind a LayerNorm, for channel j,

    factor_j = max |x_j|^alpha / max |w_j|^(1 - alpha),   alpha = 0.5,

so that outlier channels shrink and the columns of the weight that read them grow. Then min-max, as there.
"""

from __future__ import annotations

import torch

from reptrt.calibrators.base import Batches, CalibrationResult, Calibrator
from reptrt.calibrators.histogram.methods import MinMaxCalibrator
from reptrt.calibrators.progress import Progress, no_progress
from reptrt.calibrators.quantized.quantized_model import QuantizedModel
from reptrt.calibrators.registry import register_calibrator
from reptrt.calibrators.transformers.scale_reparam import NormSite, find_norm_sites, move_channels

ALPHA = 0.5


@register_calibrator
class SmoothQuantCalibrator(Calibrator):
    """SmoothQuant, on min-max scales."""

    name = "smoothquant"
    summary = "SmoothQuant: outlier channels moved from LayerNorm outputs into weights; min-max"

    @torch.no_grad()
    def calibrate(
        self,
        model: QuantizedModel,
        batches: Batches,
        progress: Progress = no_progress,
    ) -> CalibrationResult:
        """See `Calibrator.calibrate`."""
        sites = list(find_norm_sites(model).values())
        for site, amax in zip(sites, _channel_amax(model, sites, batches), strict=True):
            move_channels(model, site, _factor(model, site, amax), torch.zeros_like(amax))
        MinMaxCalibrator().calibrate(model, batches, progress)
        return CalibrationResult(self.name, {"Smoothed LayerNorms": str(len(sites))})


def _channel_amax(
    model: QuantizedModel, sites: list[NormSite], batches: Batches
) -> list[torch.Tensor]:
    """Largest magnitude [channels] of every site's tensor in float, as float64."""
    found: dict[torch.nn.Module, torch.Tensor] = {}

    def observe(quantizer: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        amax = inputs[0].abs().flatten(0, -2).amax(0).double()
        found[quantizer] = torch.maximum(found.get(quantizer, amax), amax)

    quantizers = [model.quantizer_at(site.call) for site in sites]
    hooks = [quantizer.register_forward_pre_hook(observe) for quantizer in quantizers]
    try:
        with model.float_mode():
            for batch in batches:
                model(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return [found[quantizer] for quantizer in quantizers]


def _factor(model: QuantizedModel, site: NormSite, amax: torch.Tensor) -> torch.Tensor:
    """Eq. 4 [channels]; 1 for a channel that is always 0, or that nobody weighs."""
    weights = [model.weight_of(model.placement.layers[reader.name]) for reader in site.readers]
    weighed = torch.cat(weights).abs().amax(0).double()
    factor = amax**ALPHA / weighed ** (1 - ALPHA)
    return torch.where((amax > 0) & (weighed > 0), factor, 1.0)
