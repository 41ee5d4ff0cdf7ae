"""An INT8 engine beside the FP16 engine of the same network: kernels, bytes, predicted milliseconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from reptrt.engines.cost.estimate import CostError, EngineCost, estimate_cost
from reptrt.engines.cost.sources import Layers
from reptrt.engines.data_sheet import DataSheet
from reptrt.engines.inspection.traffic import Traffic, TrafficEntry, measure_traffic, traffic_entry


@dataclass(frozen=True)
class Side:
    """One of the two engines."""

    traffic: Traffic
    cost: EngineCost


@dataclass(frozen=True)
class Comparison:
    """Both engines at one batch on one GPU.

    Attributes:
        batch: images at once.
        origin: where the layers are from, in words.
        int8: the quantized network's engine.
        fp16: the float network's, in FP16.
    """

    batch: int
    origin: str
    int8: Side
    fp16: Side

    @property
    def time_ratio(self) -> float:
        """INT8's predicted time over FP16's: below 1 INT8 is faster."""
        return self.int8.cost.milliseconds / self.fp16.cost.milliseconds

    @property
    def byte_ratio(self) -> float:
        """What INT8 moves, activations and weights, over what FP16 does."""
        return self.int8.traffic.megabytes / self.fp16.traffic.megabytes

    @property
    def kernel_ratio(self) -> float:
        """Kernels of INT8 over kernels of FP16."""
        return self.int8.traffic.kernels / self.fp16.traffic.kernels


class SideEntry(TypedDict):
    """`Side` in JSON."""

    traffic: TrafficEntry
    milliseconds: float
    low: float
    high: float
    bound: str


class ComparisonEntry(TypedDict):
    """`Comparison` in fusion.json; ratios are INT8 over FP16, times are predicted."""

    gpu: str
    batch: int
    origin: str
    int8: SideEntry
    fp16: SideEntry
    time_ratio: float
    byte_ratio: float
    kernel_ratio: float


def compare_layers(int8: Layers, fp16: Layers, sheet: DataSheet) -> Comparison:
    """Cost both on the GPU of `sheet`, FP16 at the batch of INT8.

    Raises:
        CostError: one of them has no shapes.
    """
    return Comparison(
        int8.batch, int8.origin, _side(int8, sheet), _side(fp16.at_batch(int8.batch), sheet)
    )


def comparison_entry(comparison: Comparison) -> ComparisonEntry:
    """Return it as JSON, rounded to what it is worth."""
    return ComparisonEntry(
        gpu=comparison.int8.cost.gpu,
        batch=comparison.batch,
        origin=comparison.origin,
        int8=_entry(comparison.int8),
        fp16=_entry(comparison.fp16),
        time_ratio=round(comparison.time_ratio, 3),
        byte_ratio=round(comparison.byte_ratio, 3),
        kernel_ratio=round(comparison.kernel_ratio, 3),
    )


def _side(layers: Layers, sheet: DataSheet) -> Side:
    cost = estimate_cost(layers.kernels, sheet)
    traffic = measure_traffic(layers.kernels)
    if traffic is None:
        raise CostError("kernels without shapes cannot be compared: build the engine for one batch")
    return Side(traffic, cost)


def _entry(side: Side) -> SideEntry:
    traffic = traffic_entry(side.traffic)
    assert traffic is not None  # of a side there always is one
    return SideEntry(
        traffic=traffic,
        milliseconds=round(side.cost.milliseconds, 4),
        low=round(side.cost.low, 4),
        high=round(side.cost.high, 4),
        bound=side.cost.bound,
    )
