"""RepQuant: RepQ-ViT, with clipping and weights that are learned.

Li et al., "RepQuant: Towards Accurate Post-Training Quantization of Large Transformer Models via
Scale Reparameterization" (https://arxiv.org/abs/2402.05628). What it adds to RepQ-ViT: per-channel dual
clipping of LayerNorm outputs (`reptrt.calibrators.transformers.dual_clipping`), and quantized weight reconstruction behind
the reparameterization, on quantized inputs. There is no public code and we have not seen the formulas:
both are reconstructed, and two candidates for the second were measured (docs/results.md):

- learned: the block reconstruction that RepAPQ uses (`reptrt.calibrators.reconstruction.reconstruct`), with a squared
  error on each residual branch, from RepQ-ViT's scales;
- `compensate`: the closed form of `reptrt.calibrators.transformers.gptq`, layer by layer, from whose codes the
  learning then starts (alone with `iterations: 0`).
"""

from __future__ import annotations

import torch
from torch import fx

from reptrt.calibrators.base import Batches, Progress
from reptrt.calibrators.output_noise import guard_images, output_noise
from reptrt.calibrators.quantized.quantized_model import QuantizedModel
from reptrt.calibrators.quantized.quantizers import TensorQuantizer
from reptrt.calibrators.quantized.run_nodes import Overrides, float_copy, float_overrides
from reptrt.calibrators.reconstruction.across_block import AcrossBlockCalibrator
from reptrt.calibrators.reconstruction.baseline_guard import Guard
from reptrt.calibrators.registry import register_calibrator
from reptrt.calibrators.settings import Reconstruction
from reptrt.calibrators.state import restore_tensors, save_tensors
from reptrt.calibrators.transformers.dual_clipping import learn_thresholds
from reptrt.calibrators.transformers.gptq import gptq_round
from reptrt.calibrators.transformers.node_inputs import NodeInputs
from reptrt.calibrators.transformers.repq_vit import ReparameterizingPass
from reptrt.calibrators.transformers.scale_reparam import NormSite

aten = torch.ops.aten


@register_calibrator
class RepQuantCalibrator(AcrossBlockCalibrator):
    """RepQuant."""

    name = "repquant"
    summary = "RepQuant: RepQ-ViT with learned clipping and reconstructed weights"
    default_num_samples = 384

    def choose(self, reconstruction: Reconstruction) -> Reconstruction:
        """Measured winners for transformers, where the recipe does not say otherwise."""
        winners = {"loss": "l2", "stage_weight": 0.0, "code_rate": 0.02, "units": "chains"}
        said = reconstruction.model_fields_set
        update = {name: value for name, value in winners.items() if name not in said}
        return reconstruction.model_copy(update=update)

    def start(
        self, model: QuantizedModel, batches: Batches, chosen: Reconstruction, progress: Progress
    ) -> tuple[Guard, Overrides]:
        """Reparameterize with learned clipping."""
        reference = float_copy(model)
        generator = torch.Generator().manual_seed(self.settings.seed)
        first = ClippingPass(model, chosen, generator)
        first.run(batches, progress)
        images = guard_images(batches)
        noise = {"repq-vit": output_noise(model, images, reference)}
        guard = Guard(model, reference, images, noise)
        rounded = save_tensors(model, list(first.float_weights))
        restore_tensors(model, first.float_weights)
        float_network = float_overrides(model)
        restore_tensors(model, rounded)
        return guard, float_network


class ClippingPass(ReparameterizingPass):
    """RepQ-ViT's pass, with dual clipping and, where that is chosen, compensated rounding.

    Attributes:
        float_weights: path -> weight that compensated rounding replaced by one on its grid.
    """

    def __init__(
        self, model: QuantizedModel, chosen: Reconstruction, generator: torch.Generator
    ) -> None:
        super().__init__(model)
        self._uses_gptq, self._generator = chosen.compensate, generator
        self.float_weights: dict[str, torch.Tensor] = {}

    def fit_channels(self, site: NormSite, channels: TensorQuantizer, x: torch.Tensor) -> None:
        """Percentiles, then learned thresholds."""
        super().fit_channels(site, channels, x)
        if not site.is_padded:
            layers = [self._model.placement.layers[reader.name] for reader in site.readers]
            weights = [self._model.weight_of(layer) for layer in layers]
            learn_thresholds(channels, x, weights, self._generator)

    def fit_weight(self, node_inputs: NodeInputs, node: fx.Node) -> None:
        """Percentiles, then rounding on the layer's quantized input."""
        super().fit_weight(node_inputs, node)
        if self._uses_gptq and node.target is aten.linear.default:
            source, layer = node.args[0], self._model.placement.layers[node.name]
            assert isinstance(source, fx.Node)
            weight, quantizer = self._model.weight_of(layer), self._model.weight_quantizers[layer]
            self.float_weights[self._model.weight_paths[layer]] = weight.detach().clone()
            weight.copy_(gptq_round(weight, quantizer, node_inputs.read(source)))
