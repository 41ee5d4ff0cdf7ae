"""The interface of calibrators: images in, scales (and perhaps weights) of a quantized model out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from reptrt.calibrators.feed import Batch
from reptrt.calibrators.progress import Progress, no_progress
from reptrt.calibrators.quantized.quantized_model import QuantizedModel
from reptrt.calibrators.settings import Settings

DEFAULT_SETTINGS = Settings()


class Batches(Protocol):
    """Calibration samples, read lazily: each pass yields the same batches in the same order."""

    def __len__(self) -> int:
        """Number of batches."""

    def __iter__(self) -> Iterator[Batch]:
        """Images [N, 3, H, W], preprocessed, or what a network with other inputs reads."""


@dataclass(frozen=True)
class BlockFit:
    """How one block was reconstructed.

    Attributes:
        name: its first layer.
        stage: index of its stage.
        before: mean distance of the block's outputs from float before the first step.
        after: the same after the last, on the same images.
        seconds: spent on it; None where a file does not say, so that equal runs give equal files.
        steps: of learning.
        batch_size: images of one step.
        snr_db: SNR of the block's outputs against the float block on the same inputs, before a step was taken.
        reason: why it took no more steps.
    """

    name: str
    stage: int
    before: float
    after: float
    seconds: float | None
    steps: int = 0
    batch_size: int = 0
    snr_db: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class CalibrationResult:
    """The report of a calibrator.

    Attributes:
        method: calibrator that chose the scales, also where `auto` was asked for.
        notes: facts for the report, label -> text.
        num_samples: calibration images; filled in by the pipeline, which read them.
        snr_db: of the worst part of the outputs on some of them, measured by the pipeline; None where
            every part is exact.
        blocks: of calibrators that reconstruct blocks, in order.
        compared: method -> dB at the outputs on the calibration images, of those that it chose from.
        starts: of calibrators that learn: point of activations -> smallest and largest value of its grid before.
    """

    method: str
    notes: dict[str, str] = field(default_factory=dict)
    num_samples: int = 0
    snr_db: float | None = None
    blocks: tuple[BlockFit, ...] = ()
    compared: dict[str, float] = field(default_factory=dict)
    starts: dict[str, tuple[float, float]] = field(default_factory=dict)


class Calibrator(ABC):
    """One post-training quantization method.

    Attributes:
        name: key on the command line.
        summary: one line for `reptrt calibrators`.
        default_num_samples: calibration images that it uses unless told otherwise, at 8 bits.
        reads_histograms: of the network as it comes, which `Settings.histograms` may bring.
        passes: how often it goes through the images, roughly and as time counts: for a forecast.
        settings: chosen by the user.
    """

    name: str
    summary: str
    default_num_samples = 128
    reads_histograms = False
    passes = 6

    def __init__(self, settings: Settings = DEFAULT_SETTINGS) -> None:
        self.settings = settings

    def usual_num_samples(self, bits: int) -> int:
        """Calibration images that it uses unless told otherwise, where the fewest bits of a code are `bits`."""
        return self.default_num_samples

    @abstractmethod
    def calibrate(
        self,
        model: QuantizedModel,
        batches: Batches,
        progress: Progress = no_progress,
    ) -> CalibrationResult:
        """Set the quantizers of `model` (and its weights, if the method changes them) in place.

        Args:
            model: placed but uncalibrated; its float weights are the reference.
            batches: calibration images.
            progress: called as work advances.
        """
