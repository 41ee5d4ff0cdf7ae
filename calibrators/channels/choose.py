"""Factors of the channels, chosen where the layers behind a quantizer are least disturbed.

One wide channel takes the codes of all others: YOLOv6Lite's tensors behind hard swish have channels up to
34 times as wide as the median. With m_c = (amax_c / max amax)^alpha a quantizer reads x_c / m_c. At
alpha = 1 every channel uses all codes, and the columns W[:, c] m_c of the next weights differ as much
as the channels did, so their rounding costs more. Which alpha is best, and where to clip, is read off
the outputs of the layers that read the tensor, at some positions of images that the amax does not
come from, with weights quantized too; an error there counts by how much the network's outputs depend on that
channel (`reptrt.calibrators.importance`). SmoothQuant (arXiv:2211.10438) has the same trade-off in
front of linears, as m_c = amax_c^alpha / (largest weight that reads c)^(1 - alpha), which gives a channel that was
scaled up and whose readers were scaled down its factor at any alpha: that is tried too. That alpha is searched per
tied group by output error is ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import fx
from torch.nn import functional

from reptrt.calibrators.base import Batches
from reptrt.calibrators.channels.sites import (
    ChannelSite,
    column_sizes,
    find_producer,
    find_site,
    groups_of,
    parameter_of,
    source_of,
    weight_columns,
)
from reptrt.calibrators.feed import Batch, num_pixels, tensors_of
from reptrt.calibrators.histogram.methods import observe_activations
from reptrt.calibrators.importance import sum_squares
from reptrt.calibrators.progress import Progress, no_progress
from reptrt.calibrators.quantized.quantized_model import QuantizedModel
from reptrt.calibrators.quantized.quantizers import IntegerGrid
from reptrt.calibrators.quantized.run_nodes import float_overrides
from reptrt.models.graph import get_tensor

aten = torch.ops.aten

ALPHAS = (0.25, 0.5, 0.75, 1.0)
CLIPS = (1.5, 1.2, 1.0, 0.8, 0.6, 0.45, 0.33, 0.25)
"""Ends of the trial's grid over the amax; above 1 for what other images have."""
LEAST_SHARE = 1e-3
"""Smallest amax of a channel over the largest that counts: nearly dead channels are not blown up."""
FOLD_GAIN, PRODUCT_GAIN = 0.5, 1.0
"""dB that factors must gain where they cost no operator, and where they cost one."""
WEIGHTS_GAIN = 0.5
"""dB that factors must gain that regard the weights too, over those that do not: a few positions tell no less apart."""
_IMAGES, _PIXELS = 256, 32 * 320 * 320
"""Looked at. Behind squeeze-and-excitation a few images have channels far wider than the others do (docs/channels.md)."""
_POSITIONS, _ELEMENTS, _WHOLE = 1024, 1 << 19, 8
_TINY = 1e-12


@dataclass
class _Seen:
    """What was seen of a float network.

    Attributes:
        amax: quantizer call -> [channels] largest magnitude.
        negative: quantizer calls that have a negative value.
        samples: layer or quantizer call -> what it reads at some positions of each batch,
            [n, channels, ...].
        importance: layer or quantizer call -> how much the outputs depend on each channel of what it makes, [channels];
            mean 1. Nothing where they do not.
    """

    amax: dict[fx.Node, torch.Tensor] = field(default_factory=dict)
    negative: set[fx.Node] = field(default_factory=set)
    samples: dict[fx.Node, list[torch.Tensor]] = field(default_factory=dict)
    importance: dict[fx.Node, torch.Tensor] = field(default_factory=dict)


@torch.no_grad()
def choose_factors(
    model: QuantizedModel,
    batches: Batches,
    product_gain: float = PRODUCT_GAIN,
    progress: Progress = no_progress,
) -> dict[str, torch.Tensor]:
    """Factors for the tensors of `model` that gain from them.

    Args:
        model: placed, uncalibrated; left as it is.
        batches: calibration samples; at most 256 are looked at, 65 of 224x224 pixels, 32 of 320x320.
        product_gain: dB at the readers' outputs that factors must gain where no fold takes them.
        progress: called as work advances.

    Returns:
        Quantized tensor -> factor [channels] in 0.001..1, on the CPU; see `scale_channels`.

    Raises:
        ObservationError: an activation is NaN or infinite.
    """
    sites = [site for name in model.activation_quantizers if (site := find_site(model, name))]
    images = list(_images(batches))
    half = len(images) // 2
    seen = _Seen()
    with model.float_mode():
        for batch in images[:half] or images:
            _Watcher(model, sites, seen).run(*tensors_of(batch))
        if not all(bool(amax.isfinite().all()) for amax in seen.amax.values()):
            observe_activations(model, images)  # names the image, and the layer that reads it
        rest = images[half:]
        sampler = _Watcher(model, sites, seen, positions=max(1, _POSITIONS // len(rest)))
        for batch in rest:
            sampler.run(*tensors_of(batch))
    seen.importance = _channel_importance(model, sites, images)
    found: dict[str, torch.Tensor] = {}
    for done, site in enumerate(sites, start=1):
        found |= _choose(model, site, seen, product_gain)
        progress("scale channels", done, len(sites))
    return found


def _channel_importance(
    model: QuantizedModel, sites: Sequence[ChannelSite], images: Sequence[Batch]
) -> dict[fx.Node, torch.Tensor]:
    """Of what is compared: outputs of the layers behind each site, or its own tensors."""
    compared = list(dict.fromkeys(node for site in sites for node in site.layers or site.calls))
    found = sum_squares(model, compared, images, float_overrides(model), seed=0)
    importance = {}
    for node, squares in found.items():
        is_last = node.target is aten.linear.default
        rows = squares.movedim(-1, 0) if is_last else squares
        channels = rows.reshape(len(rows), -1).sum(1)
        importance[node] = channels / channels.mean()
    return importance


def _images(batches: Batches) -> Iterator[Batch]:
    """Some batches, whole: as many images as are worth their time."""
    seen = 0
    for batch in islice(iter(batches), _IMAGES):
        yield batch
        seen += len(batch)
        if seen >= min(_IMAGES, max(4, _PIXELS // num_pixels(batch))):
            return


class _Watcher(fx.Interpreter):
    """Runs the float network and looks at what quantizers, and the layers behind them, read.

    That is the amax of channels, or values at some positions, where their number is given.
    """

    def __init__(
        self, model: QuantizedModel, sites: Sequence[ChannelSite], seen: _Seen, positions: int = 0
    ) -> None:
        super().__init__(model.graph_module)
        self._seen, self._positions = seen, positions
        self._calls = {call for site in sites for call in site.calls}
        self._layers = {layer for site in sites for layer in site.layers}
        self._bare = {call for site in sites if not site.layers for call in site.calls}
        self._generator = torch.Generator().manual_seed(0)

    def run_node(self, node: fx.Node) -> object:
        """Run one node, and look at its input."""
        if node in self._calls and not self._positions:
            self._measure(node, self.env[source_of(node)])
        elif self._positions and node in self._layers | self._bare:
            values = _read_by(node, self.env[source_of(node)], self._positions, self._generator)
            self._seen.samples.setdefault(node, []).append(values)
        return super().run_node(node)

    def _measure(self, call: fx.Node, x: torch.Tensor) -> None:
        largest = x.abs().movedim(1, 0).flatten(1).amax(1)
        before = self._seen.amax.get(call, largest)
        self._seen.amax[call] = torch.maximum(before, largest)
        if bool((x < 0).any()):
            self._seen.negative.add(call)


def _read_by(
    node: fx.Node, x: torch.Tensor, positions: int, generator: torch.Generator
) -> torch.Tensor:
    """What `node` reads of `x`: [n, C, kernel...] of a convolution, else [n, C]; some images of others."""
    if node.target is aten.conv2d.default:
        return _conv_patches(node, x, positions, generator)
    if node.op == "call_module" or node.target is aten.linear.default:
        return _points(x, positions, generator)
    return x[:_WHOLE]


def _points(x: torch.Tensor, positions: int, generator: torch.Generator) -> torch.Tensor:
    """Values of all channels at some positions of `x` [N, C, ...]: [n, C]."""
    flat = x.movedim(1, -1).flatten(0, -2)
    count = min(len(flat), positions, max(64, _ELEMENTS // flat.shape[1]))
    chosen = torch.randint(len(flat), (count,), generator=generator)
    return flat[chosen.to(x.device)]


def _conv_patches(
    layer: fx.Node, x: torch.Tensor, positions: int, generator: torch.Generator
) -> torch.Tensor:
    kernel = parameter_of(layer.args[1]).meta["val"].shape[2:]
    stride, padding, dilation = (
        _pair(layer, at, default) for at, default in ((3, 1), (4, 0), (5, 1))
    )
    padded = functional.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    sides = [
        (padded.shape[2 + i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in (0, 1)
    ]
    size = x.shape[1] * math.prod(kernel)
    total = len(x) * math.prod(sides)
    count = min(total, positions, max(64, _ELEMENTS // size))
    flat = torch.randint(total, (count,), generator=generator).to(x.device)
    image, place = flat // math.prod(sides), flat % math.prod(sides)
    rows, columns = (
        at.view(-1, 1) * stride[i] + torch.arange(kernel[i], device=x.device) * dilation[i]
        for i, at in enumerate((place // sides[1], place % sides[1]))
    )
    return padded.movedim(1, -1)[
        image.view(-1, 1, 1), rows[:, :, None], columns[:, None, :]
    ].movedim(-1, 1)


def _pair(layer: fx.Node, at: int, default: int) -> tuple[int, int]:
    value = layer.args[at] if len(layer.args) > at else default
    if isinstance(value, (list, tuple)):
        return int(value[0]), int(value[-1])
    return int(value), int(value)  # type: ignore[arg-type]


def _choose(
    model: QuantizedModel, site: ChannelSite, seen: _Seen, product_gain: float
) -> dict[str, torch.Tensor]:
    """Factors of one site; nothing where they gain too little."""
    top = max(float(seen.amax[call].max()) for call in site.calls)
    if top == 0:
        return {}
    trial = _Trial(model, site, seen)
    without = trial.least_error({call: torch.ones_like(seen.amax[call]) for call in site.calls})
    error, best = min(
        ((trial.least_error(own), own) for own in _by_amax(site, seen, top)), key=lambda one: one[0]
    )
    for own in _by_amax_and_weights(model, site, seen, top):
        found = trial.least_error(own)
        if _gain(error, found) >= WEIGHTS_GAIN:
            error, best = found, own
    is_free = not site.restored and all(find_producer(call) for call in site.calls)
    needed = FOLD_GAIN if is_free else product_gain
    if _gain(without, error) < needed:
        return {}
    return {source_of(call).name: own.cpu() for call, own in best.items()}


def _gain(before: float, after: float) -> float:
    """Of an error, in dB."""
    return 10 * math.log10((before + _TINY) / (after + _TINY))


def _shares(site: ChannelSite, seen: _Seen, top: float) -> dict[fx.Node, torch.Tensor]:
    return {call: (seen.amax[call] / top).clamp_min(LEAST_SHARE) for call in site.calls}


def _by_amax(site: ChannelSite, seen: _Seen, top: float) -> Iterator[dict[fx.Node, torch.Tensor]]:
    """Factors of all calls of a site, 0.001 to 1."""
    shares = _shares(site, seen, top)
    for alpha in ALPHAS:
        yield {call: share**alpha for call, share in shares.items()}


def _by_amax_and_weights(
    model: QuantizedModel, site: ChannelSite, seen: _Seen, top: float
) -> Iterator[dict[fx.Node, torch.Tensor]]:
    """The same, with regard to the weights behind."""
    shares = _shares(site, seen, top)
    columns = _column_sizes(model, site)
    if all(bool((column == 1).all()) for column in columns.values()):
        return
    for alpha in ALPHAS[:-1]:
        own = {call: share**alpha * columns[call] ** (alpha - 1) for call, share in shares.items()}
        widest = max(float(factor.max()) for factor in own.values())
        yield {call: (factor / widest).clamp_min(LEAST_SHARE) for call, factor in own.items()}


def _column_sizes(model: QuantizedModel, site: ChannelSite) -> dict[fx.Node, torch.Tensor]:
    """Call -> [channels] how large the columns of its readers are, 0.001 to 1; 1 where no layer reads it."""
    counts = [int(source_of(call).meta["val"].shape[1]) for call in site.calls]
    numbers = torch.arange(float(sum(counts)), device=next(model.graph_module.parameters()).device)
    carried = site.carried(dict(zip(site.calls, torch.split(numbers, counts), strict=True)))
    sizes = torch.zeros_like(numbers)
    for layer in site.layers:
        weight = get_tensor(model.graph_module, parameter_of(layer.args[1])).float()
        columns = column_sizes(weight, groups_of(layer))
        sizes.scatter_reduce_(0, carried[source_of(layer)].long(), columns, "amax")
    if not site.layers:
        sizes.fill_(1.0)
    split = torch.split(sizes.clamp_min(LEAST_SHARE), counts)
    return dict(zip(site.calls, split, strict=True))


class _Trial:
    """Errors at the outputs of the layers behind a site, for factors that are tried."""

    def __init__(self, model: QuantizedModel, site: ChannelSite, seen: _Seen) -> None:
        self._model, self._site, self._seen = model, site, seen
        bits = model.activation_quantizers[site.name].grid.num_bits
        signed = any(call in seen.negative for call in site.calls)
        self._grid = IntegerGrid.for_activations(bits, signed=signed)

    def least_error(self, factors: Mapping[fx.Node, torch.Tensor]) -> float:
        """Error over variance, mean over the readers, with the best clip."""
        widest = max(float((self._seen.amax[call] / own).max()) for call, own in factors.items())
        clips = [widest * clip for clip in CLIPS]
        carried = self._site.carried(factors)
        errors = [
            self._layer_errors(layer, carried[source_of(layer)], clips)
            for layer in self._site.layers
        ] or [self._own_errors(call, own, clips) for call, own in factors.items()]
        return float(torch.tensor(errors, dtype=torch.float64).mean(0).min())

    def _layer_errors(
        self, layer: fx.Node, factor: torch.Tensor, clips: Sequence[float]
    ) -> list[float]:
        """Errors of what `layer` computes, its weight quantized too."""
        x = torch.cat(self._seen.samples[layer])
        weight = get_tensor(self._model.graph_module, parameter_of(layer.args[1]))
        columns = weight_columns(weight, factor, groups_of(layer))
        rounded = self._round_weight(layer, weight * columns) / columns
        expected = _apply(layer, x, weight)
        return [
            _relative(
                _apply(layer, self._quantize(x, factor, clip), rounded),
                expected,
                self._seen.importance.get(layer),
            )
            for clip in clips
        ]

    def _own_errors(
        self, call: fx.Node, factor: torch.Tensor, clips: Sequence[float]
    ) -> list[float]:
        """Errors of the tensor itself, where no layer reads it."""
        x = torch.cat(self._seen.samples[call])
        return [
            _relative(self._quantize(x, factor, clip), x, self._seen.importance.get(call))
            for clip in clips
        ]

    def _round_weight(self, layer: fx.Node, weight: torch.Tensor) -> torch.Tensor:
        name = self._model.placement.layers.get(layer.name)
        if name is None:
            return weight
        limit = self._model.weight_quantizers[name].grid.quant_max
        step = weight.abs().flatten(1).amax(1).clamp_min(_TINY) / limit
        step = step.view(-1, *[1] * (weight.ndim - 1))
        return torch.round(weight / step) * step

    def _quantize(self, x: torch.Tensor, factor: torch.Tensor, amax: float) -> torch.Tensor:
        step = factor.view(-1, *[1] * (x.ndim - 2)) * (amax / self._grid.quant_max)
        return torch.clamp(torch.round(x / step), self._grid.quant_min, self._grid.quant_max) * step


def _apply(layer: fx.Node, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The layer's product on samples, without its bias."""
    if layer.target is aten.linear.default:
        return functional.linear(x, weight)
    if layer.target is aten.conv2d.default:
        return functional.conv2d(x, weight, groups=groups_of(layer))
    return layer.target(x, weight, None, *layer.args[3:])  # type: ignore[operator, no-any-return]


def _relative(
    found: torch.Tensor, expected: torch.Tensor, importance: torch.Tensor | None
) -> float:
    """Squared error over the variance of the channels, each by its importance."""
    spread = expected.movedim(1, 0).flatten(1).var(1)
    error = (found - expected).movedim(1, 0).flatten(1).square().mean(1)
    weight = torch.ones_like(spread) if importance is None else importance
    return float((weight * error).mean() / ((weight * spread).mean() + _TINY))
