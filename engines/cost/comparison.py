"""An INT8 engine beside the FP16 engine of the same network: kernels, bytes, predicted milliseconds."""

from __future__ import annotations

from dataclasses import dataclass

from reptrt.engines.cost.estimate import CostError, estimate_cost
from reptrt.engines.cost.kernel_time import Bound
from reptrt.engines.cost.sources import Layers
from reptrt.engines.data_sheet import DataSheet
from reptrt.engines.inspection.traffic import Traffic, measure_traffic


@dataclass(frozen=True)
class PredictedEngine:
    """What one engine moves and is predicted to take; `low` and `high` enclose `milliseconds`."""

    traffic: Traffic
    milliseconds: float
    low: float
    high: float
    bound: Bound


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
    batch: int
    origin: str
    int8: PredictedEngine
    fp16: PredictedEngine
    time_ratio: float
    byte_ratio: float
    kernel_ratio: float


def compare_layers(int8: Layers, fp16: Layers, sheet: DataSheet) -> Comparison:
    """Cost both on the GPU of `sheet`, FP16 at the batch of INT8.

    Raises:
        CostError: one of them has no shapes.
    """
    quantized, rival = _predict(int8, sheet), _predict(fp16.at_batch(int8.batch), sheet)
    return Comparison(
        gpu=sheet.gpu,
        batch=int8.batch,
        origin=int8.origin,
        int8=quantized,
        fp16=rival,
        time_ratio=quantized.milliseconds / rival.milliseconds,
        byte_ratio=quantized.traffic.megabytes / rival.traffic.megabytes,
        kernel_ratio=quantized.traffic.kernels / rival.traffic.kernels,
    )


def _predict(layers: Layers, sheet: DataSheet) -> PredictedEngine:
    cost = estimate_cost(layers.kernels, sheet)
    traffic = measure_traffic(layers.kernels)
    if traffic is None:
        raise CostError("kernels without shapes cannot be compared: build the engine for one batch")
    return PredictedEngine(traffic, cost.milliseconds, cost.low, cost.high, cost.bound)
