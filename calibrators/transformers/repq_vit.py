"""RepQ-ViT: calibrate transformers with fine quantizers, run them with the coarse ones of hardware.

Li et al., "RepQ-ViT: Scale Reparameterization for Post-Training Quantization of Vision
Transformers" (https://arxiv.org/abs/2212.08254). One pass over the images without training: at each
quantizer the best of three percentiles (`reptrt.calibrators.transformers.percentiles`), all quantizers before it being
active; LayerNorm outputs per channel, then reparameterized to one scale (`reptrt.calibrators.transformers.scale_reparam`),
and so, which is ours, below 8 bits what attention's projection reads (`reptrt.calibrators.transformers.attention_channels`);
weights per output channel, once what is in front of them is folded into them.

For TensorRT, which is symmetric, and exactly: below 8 bits any zero point travels behind a Clip, in
weights too. At 8 bits that of a folded tensor is 128, keys are centred, what only linears read is
shifted (`reptrt.calibrators.quantized.half_range`), and everything else is symmetric, as are weights.

As in the paper, the LayerNorm in front of the classifier is calibrated per tensor: one token an image
is too little for every channel.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from reptrt.calibrators.base import Batches, CalibrationResult, Calibrator
from reptrt.calibrators.histogram.methods import PercentileCalibrator, channel_amax
from reptrt.calibrators.progress import Progress, no_progress
from reptrt.calibrators.quantized.half_range import has_shiftable_readers
from reptrt.calibrators.quantized.quantized_model import QuantizedModel, is_activation_call
from reptrt.calibrators.quantized.quantizers import IntegerGrid, TensorQuantizer
from reptrt.calibrators.registry import register_calibrator
from reptrt.calibrators.second_order.node_inputs import NodeInputs
from reptrt.calibrators.transformers.attention_channels import find_keys, find_value_sites
from reptrt.calibrators.transformers.percentiles import set_best_amax, set_best_range
from reptrt.calibrators.transformers.scale_reparam import (
    ChannelSite,
    find_norm_sites,
    reparameterize,
    unsigned_per_channel,
)

LOPSIDED = 64
"""Steps from the middle of the range to 0 beyond which an 8-bit tensor is worth a shift.

Then the shorter side is less than a third of the longer, as behind a GELU.
"""


@register_calibrator
class RepQVitCalibrator(Calibrator):
    """RepQ-ViT."""

    name = "repq-vit"
    summary = "RepQ-ViT: per-channel scales folded into LayerNorm and linears; no training"
    default_num_samples = 32

    def calibrate(
        self,
        model: QuantizedModel,
        batches: Batches,
        progress: Progress = no_progress,
    ) -> CalibrationResult:
        """See `Calibrator.calibrate`. Images are held in memory together, at one node at a time."""
        return CalibrationResult(self.name, ReparameterizingPass(model).run(batches, progress))


class ReparameterizingPass:
    """One pass over the network that sets every quantizer of `model`.

    Args:
        model: float weights change where channels are folded into them; its float network does not.
        copies: of `model`, into which the same is folded.

    Attributes:
        model: as given.
    """

    def __init__(self, model: QuantizedModel, copies: Sequence[QuantizedModel] = ()) -> None:
        self.model, self._copies = model, copies
        self._norms = find_norm_sites(model)
        self._values = {
            call: site
            for call, site in find_value_sites(model).items()
            # At 8 bits folded columns cost the projection's weight more than its input gains (docs/results.md).
            if site.heads or model.quantizer_at(call).grid.num_bits < 8
        }
        self._sites: dict[fx.Node, ChannelSite] = {**self._norms, **self._values}
        self._tied = _tied_quantizers(model)
        self._keys = find_keys(model)

    def run(self, batches: Batches, progress: Progress = no_progress) -> dict[str, str]:
        """Calibrate on `batches`; return what was reparameterized, for the report."""
        if self._tied:
            PercentileCalibrator().calibrate(self.model, batches)
        node_inputs = NodeInputs(self.model, batches)
        for done, node in enumerate(node_inputs, start=1):
            if is_activation_call(node):
                self._fit_activation(node_inputs, node)
            elif node.name in self.model.placement.layers:
                self.fit_weight(node_inputs, node)
            progress("reparameterize", done, len(node_inputs.nodes))
        counts = {"LayerNorms": len(self._norms), "attentions": len(self._values)}
        return {f"Reparameterized {what}": str(count) for what, count in counts.items()}

    def fit_channels(self, site: ChannelSite, channels: TensorQuantizer, x: torch.Tensor) -> None:
        """Calibrate the per-channel quantizer of the tensor `x` [..., channels] of `site`."""
        if site.keeps_zero:  # one zero point for all, for zeros must stay zeros
            set_best_amax(channels, x)
            channels.zero_point.fill_(2 ** (channels.grid.num_bits - 1))  # rounded from a tie
        else:
            set_best_range(channels, x)

    def fit_tensor(self, call: fx.Node, quantizer: TensorQuantizer, x: torch.Tensor) -> None:
        """Calibrate the per-tensor `quantizer` of fewer than 8 bits, which `call` calls on `x`."""
        set_best_range(quantizer, x)

    def fit_weight(self, node_inputs: NodeInputs, node: fx.Node) -> None:
        """Calibrate the weight of the layer `node`, whose input is in `node_inputs`."""
        layer = self.model.placement.layers[node.name]
        quantizer, weight = self.model.weight_quantizers[layer], self.model.weight_of(layer)
        if quantizer.grid.num_bits == 8:
            quantizer.set_amax(channel_amax(weight))
        else:
            quantizer.grid = IntegerGrid.unsigned(quantizer.grid.num_bits)
            set_best_range(quantizer, weight)

    def _fit_activation(self, node_inputs: NodeInputs, call: fx.Node) -> None:
        source = call.args[0]
        assert isinstance(source, fx.Node)
        quantizer, x = self.model.quantizer_at(call), node_inputs.read(source)
        if quantizer in self._tied:
            return
        if call in self._sites:
            self._fit_site(node_inputs, self._sites[call], source, x)
        elif not quantizer.is_uniform:
            set_best_amax(quantizer, x)
        elif quantizer.grid.num_bits < 8:
            quantizer.grid = IntegerGrid.unsigned(quantizer.grid.num_bits)
            self.fit_tensor(call, quantizer, x)
        else:
            self._fit_8_bits(node_inputs, call, source, x)

    def _fit_site(
        self, node_inputs: NodeInputs, site: ChannelSite, source: fx.Node, x: torch.Tensor
    ) -> None:
        channels = unsigned_per_channel(self.model.quantizer_at(site.call).grid.num_bits, site)
        channels.to(x.device)
        self.fit_channels(site, channels, site.channels_last(x))
        factor, summand = reparameterize(self.model, site, channels, self._copies)
        node_inputs.change(
            source, [part * factor + summand for part in node_inputs.batches(source)]
        )

    def _fit_8_bits(
        self, node_inputs: NodeInputs, call: fx.Node, source: fx.Node, x: torch.Tensor
    ) -> None:
        """Asymmetric where a bias can make the codes symmetric, or a shift is worth its operator."""
        quantizer = self.model.quantizer_at(call)
        signed = quantizer.grid
        quantizer.grid = IntegerGrid.unsigned(8)
        set_best_range(quantizer, x)
        if call in self._keys:
            summand = -float(quantizer.scale) * quantizer.offset
            for model in (self.model, *self._copies):
                self._keys[call].add(model, summand)
            quantizer.zero_point.fill_(quantizer.grid.offset)
            node_inputs.change(source, [part + summand for part in node_inputs.batches(source)])
        elif not has_shiftable_readers(call) or abs(quantizer.offset) <= LOPSIDED:
            quantizer.grid = signed
            set_best_amax(quantizer, x)


def _tied_quantizers(model: QuantizedModel) -> set[TensorQuantizer]:
    """Quantizers of several tensors: one pass in order cannot see all of them at once."""
    points = model.placement.points
    return {model.activation_quantizers[p.name] for p in points if len(p.tensors) > 1}
