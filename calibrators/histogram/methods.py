"""Calibration without learning: scales read off a histogram of each tensor.

Weights are per-channel min-max. Activations are per-tensor, and each baseline chooses amax, the
largest magnitude that is not clipped:

- `minmax`: the largest value seen.
- `percentile`: 99.99 % of the values lie below it.
- `entropy`: least KL divergence between the float and the quantized histogram, as in TensorRT's
  former entropy calibrator (Szymon Migacz, "8-bit Inference with TensorRT", GTC 2017).
- `mse`: least mean squared quantization error.
- `mae`: least mean absolute quantization error: what RepAPQ (arXiv:2402.16121) advises for
  reparameterized networks, whose rare outliers dominate a squared error.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path

import torch

from reptrt.calibrators.base import Batches, CalibrationResult, Calibrator
from reptrt.calibrators.feed import Batch
from reptrt.calibrators.histogram.file import load_observers
from reptrt.calibrators.histogram.observers import (
    NUM_BINS,
    HistogramObserver,
    ObservationError,
    observing,
)
from reptrt.calibrators.progress import Progress, no_progress
from reptrt.calibrators.quantized.quantized_model import QuantizedModel
from reptrt.calibrators.quantized.quantizers import IntegerGrid
from reptrt.calibrators.registry import register_calibrator

PERCENTILE = 0.9999
NUM_CANDIDATES = 200
ENTROPY_BINS = 2048
NUM_WEIGHT_CLIPS = 71


class HistogramCalibrator(Calibrator):
    """Observe every activation once, then choose each amax from its histogram."""

    reads_histograms = True

    def calibrate(
        self,
        model: QuantizedModel,
        batches: Batches,
        progress: Progress = no_progress,
    ) -> CalibrationResult:
        """See `Calibrator.calibrate`."""
        scale_weights(model)
        observers = read_or_observe(model, batches, self.settings.histograms, progress)
        self.scale_activations(model, observers)
        return CalibrationResult(self.name)

    def scale_activations(
        self, model: QuantizedModel, observers: Mapping[str, HistogramObserver]
    ) -> None:
        """Set every activation quantizer from its histogram."""
        for name, quantizer in model.activation_quantizers.items():
            seen = observers[name]
            is_uniform = quantizer.is_uniform
            amax = self.choose_amax(seen, quantizer.grid) if is_uniform else seen.amax
            quantizer.set_amax(torch.tensor(amax))

    @abstractmethod
    def choose_amax(self, histogram: HistogramObserver, grid: IntegerGrid) -> float:
        """Largest magnitude that the quantizer represents."""


def scale_weights(model: QuantizedModel) -> None:
    """Per-channel min-max on every weight quantizer."""
    for layer, quantizer in model.weight_quantizers.items():
        quantizer.set_amax(channel_amax(model.weight_of(layer)))


@torch.no_grad()
def clip_weights(model: QuantizedModel) -> None:
    """Clip every channel of every weight of fewer than 8 bits where its squared error is least.

    Searched from 0.3 of its largest magnitude. With 127 levels rounding hardly gains from a clip;
    with 31 or 7 it does.
    """
    for layer, quantizer in model.weight_quantizers.items():
        if quantizer.grid.num_bits == 8:
            continue
        weight, full = model.weight_of(layer), quantizer.scale.clone()
        least = torch.full_like(full, torch.inf)
        best = full.clone()
        for share in torch.linspace(0.3, 1.0, NUM_WEIGHT_CLIPS).tolist():
            quantizer.scale.copy_(share * full)
            error = (quantizer(weight) - weight).square().flatten(1).sum(1)
            best = torch.where(error < least, quantizer.scale, best)
            least = torch.minimum(error, least)
        quantizer.scale.copy_(best)


def channel_amax(weight: torch.Tensor) -> torch.Tensor:
    """Largest magnitude of each output channel: weight [out, ...] -> [out]."""
    return weight.detach().abs().flatten(1).amax(1)


@torch.no_grad()
def observe_activations(
    model: QuantizedModel, batches: Batches, progress: Progress = no_progress
) -> dict[str, HistogramObserver]:
    """Run the float model over `batches` and return one histogram per activation quantizer.

    A tensor that is never negative gets an unsigned grid, where its bits leave room for one.
    """
    seen = 0
    with model.float_mode(), observing(model.activation_quantizers) as observers:
        for done, batch in enumerate(batches, start=1):
            try:
                model(batch)
            except ObservationError as error:
                raise _blame(model, batch, seen, error) from error
            seen += len(batch)
            progress("observe activations", done, len(batches))
    _fit_grids(model, observers)
    return observers


def read_or_observe(
    model: QuantizedModel, batches: Batches, stored: Path | None, progress: Progress
) -> dict[str, HistogramObserver]:
    """`observe_activations`, or what `stored` holds of it.

    Raises:
        HistogramFileError: `stored` is damaged, or of another network.
    """
    if stored is None:
        return observe_activations(model, batches, progress)
    observers = load_observers(stored, model.activation_quantizers)
    _fit_grids(model, observers)
    return observers


def _fit_grids(model: QuantizedModel, observers: Mapping[str, HistogramObserver]) -> None:
    for name, quantizer in model.activation_quantizers.items():
        if quantizer.is_uniform:
            signed = observers[name].minimum < 0
            quantizer.grid = IntegerGrid.for_activations(quantizer.grid.num_bits, signed=signed)


@register_calibrator
class MinMaxCalibrator(HistogramCalibrator):
    """No clipping."""

    name = "minmax"
    summary = "largest value seen; no clipping"

    def choose_amax(self, histogram: HistogramObserver, grid: IntegerGrid) -> float:
        """The largest magnitude."""
        return histogram.amax


@register_calibrator
class PercentileCalibrator(HistogramCalibrator):
    """Clip the largest 0.01 % of the values."""

    name = "percentile"
    summary = "99.99th percentile of the magnitudes"

    def choose_amax(self, histogram: HistogramObserver, grid: IntegerGrid) -> float:
        """Upper edge of the bin in which the percentile lies."""
        cumulative = histogram.counts.cumsum(0)
        bins = int(torch.searchsorted(cumulative, PERCENTILE * cumulative[-1])) + 1
        return min(bins * histogram.limit / NUM_BINS, histogram.amax)


@register_calibrator
class EntropyCalibrator(HistogramCalibrator):
    """Clip where the quantized distribution diverges least from the float one."""

    name = "entropy"
    summary = "least KL divergence between float and quantized histogram"

    def choose_amax(self, histogram: HistogramObserver, grid: IntegerGrid) -> float:
        """Search over bin counts, from one bin per code to the whole histogram."""
        levels = grid.quant_max + 1
        counts = histogram.counts.view(ENTROPY_BINS, -1).sum(1)
        counts[0] = counts[1]  # exact zeros cost nothing on a symmetric grid
        candidates = range(levels, ENTROPY_BINS + 1, 8)
        divergence = [_kl_divergence(counts, kept, levels) for kept in candidates]
        best = candidates[int(torch.tensor(divergence).argmin())]
        return min(best * histogram.limit / ENTROPY_BINS, histogram.amax)


class ErrorCalibrator(HistogramCalibrator):
    """Clip where the expected quantization error, |error|^power, is least."""

    power: float

    def choose_amax(self, histogram: HistogramObserver, grid: IntegerGrid) -> float:
        """Try `NUM_CANDIDATES` clips, geometrically spaced from amax/500 to amax."""
        occupied = histogram.counts.nonzero().flatten()
        values, counts = histogram.centers()[occupied], histogram.counts[occupied]
        clips = histogram.amax * torch.logspace(-2.7, 0, NUM_CANDIDATES, dtype=torch.float64)
        errors = []
        for clip in clips:
            scale = (clip / grid.quant_max).clamp_min(1e-300)
            nearest = torch.clamp(torch.round(values / scale), max=grid.quant_max) * scale
            errors.append(float((counts * (values - nearest).abs() ** self.power).sum()))
        return float(clips[int(torch.tensor(errors).argmin())])


@register_calibrator
class MseCalibrator(ErrorCalibrator):
    """Squared error."""

    name = "mse"
    summary = "least mean squared quantization error"
    power = 2.0


@register_calibrator
class MaeCalibrator(ErrorCalibrator):
    """Absolute error."""

    name = "mae"
    summary = "least mean absolute quantization error (RepAPQ's measure)"
    power = 1.0


def _kl_divergence(counts: torch.Tensor, kept: int, levels: int) -> float:
    """KL(P || Q) when the first `kept` bins are quantized to `levels` codes."""
    reference = counts[:kept].clone()
    reference[-1] += counts[kept:].sum()
    occupied = counts[:kept] > 0
    code = (torch.arange(kept) * levels) // kept
    total = torch.zeros(levels, dtype=counts.dtype).index_add_(0, code, counts[:kept])
    filled = torch.zeros(levels, dtype=counts.dtype).index_add_(0, code, occupied.to(counts.dtype))
    quantized = torch.where(occupied, (total / filled.clamp_min(1))[code], 0.0)
    p, q = reference / reference.sum(), quantized / quantized.sum()
    both = (p > 0) & (q > 0)
    if bool(((p > 0) & (q <= 0)).any()):
        q = q + 1e-12
        both = p > 0
    return float((p[both] * torch.log(p[both] / q[both])).sum())


def _blame(
    model: QuantizedModel, batch: Batch, before: int, error: ObservationError
) -> ObservationError:
    """Name the first image of `batch` that stops calibration, and the layer that reads its values."""
    point = next((name for name in model.activation_quantizers if name == error.tensor), None)
    layers = model.placement.layers
    readers = [
        layers[consumer]
        for own in model.placement.points
        if own.name == point
        for _, consumer in own.edges
        if consumer in layers
    ]
    place = f"layer {readers[0]!r} reads" if readers else f"{error.tensor!r} is"
    image = None if error.image is None else before + error.image
    own = None
    if image is not None and isinstance(batch, torch.Tensor) and batch.ndim > 1:
        own = batch[error.image]
    flat = own is not None and bool((own.flatten(1).amax(1) == own.flatten(1).amin(1)).all())
    why = "the image is of one colour: leave it out" if flat else str(error).partition("; ")[2]
    return ObservationError(f"{place} a NaN or infinite activation; {why}", image)
