"""What a cost is told in: records of the standard library, which build kits carry too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from reptrt.engines.foreign.ranges import Amount, Count
from reptrt.engines.inspection.traffic import Traffic

Bound = Literal["compute", "memory", "launch", "nothing"]
"""What takes longest in a kernel."""


@dataclass(frozen=True)
class PredictedEngine:
    """What one engine moves and is predicted to take; `low` and `high` enclose `milliseconds`.

    `engine_bytes` is the size of its file, None where nothing here builds it.
    """

    traffic: Traffic
    milliseconds: Amount
    low: Amount
    high: Amount
    bound: Bound
    engine_bytes: Count | None = None


@dataclass(frozen=True)
class Comparison:
    """Both engines at one batch on one GPU; ratios are INT8 over FP16, below 1 INT8 is the lesser.

    Attributes:
        gpu: of the data sheet.
        batch: images at once.
        origin: where the layers are from, in words.
        int8: the quantized network's engine.
        fp16: the float network's, in FP16.
        time_ratio: of predicted milliseconds.
        byte_ratio: of activations and weights.
        kernel_ratio: of the number of kernels.
    """

    gpu: str
    batch: Count
    origin: str
    int8: PredictedEngine
    fp16: PredictedEngine
    time_ratio: Amount
    byte_ratio: Amount
    kernel_ratio: Amount
