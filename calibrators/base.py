"""What every calibrator is: images in, scales (and perhaps weights) of a quantized model out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import torch

from calibrators.quantized_model import QuantizedModel

Progress = Callable[[str, int, int], None]
"""`progress(description, done, total)`: called as work advances."""


class Batches(Protocol):
    """Calibration images, read lazily: each pass yields the same batches in the same order."""

    def __len__(self) -> int:
        """Number of batches."""

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Images [N, 3, H, W], preprocessed."""


def no_progress(description: str, done: int, total: int) -> None:
    """Show nothing."""


@dataclass(frozen=True)
class CalibrationResult:
    """What a calibrator did, beyond the quantizers it set.

    Attributes:
        method: calibrator that chose the scales; `auto` names the one it picked.
        notes: facts for the report, label -> text.
        num_samples: calibration images; filled in by the pipeline, which read them.
    """

    method: str
    notes: dict[str, str] = field(default_factory=dict)
    num_samples: int = 0


class Calibrator(ABC):
    """One post-training quantization method.

    Attributes:
        name: key on the command line.
        summary: one line for `reptrt calibrators`.
    """

    name: str
    summary: str

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
