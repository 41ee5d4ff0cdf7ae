"""An INT8 engine beside the FP16 engine of the same network: kernels, bytes, predicted milliseconds."""

from __future__ import annotations

from reptrt.engines.cost.estimate import CostError, estimate_cost
from reptrt.engines.cost.records import Comparison, PredictedEngine
from reptrt.engines.cost.sources import Layers
from reptrt.engines.data_sheet import DataSheet
from reptrt.engines.inspection.traffic import measure_traffic


def compare_layers(int8: Layers, fp16: Layers, sheet: DataSheet) -> Comparison:
    """Cost both on the GPU of `sheet`, FP16 at the batch of INT8.

    Raises:
        CostError: one of them has no shapes.
    """
    quantized, floating = _predict(int8, sheet), _predict(fp16.at_batch(int8.batch), sheet)
    return Comparison(
        gpu=sheet.gpu,
        batch=int8.batch,
        origin=int8.origin,
        int8=quantized,
        fp16=floating,
        time_ratio=quantized.milliseconds / floating.milliseconds,
        byte_ratio=quantized.traffic.megabytes / floating.traffic.megabytes,
        kernel_ratio=quantized.traffic.kernels / floating.traffic.kernels,
    )


def _predict(layers: Layers, sheet: DataSheet) -> PredictedEngine:
    cost = estimate_cost(layers.kernels, sheet)
    traffic = measure_traffic(layers.kernels)
    if traffic is None:
        raise CostError("kernels without shapes cannot be compared: build the engine for one batch")
    return PredictedEngine(
        traffic, cost.milliseconds, cost.low, cost.high, cost.bound, layers.engine_bytes
    )
