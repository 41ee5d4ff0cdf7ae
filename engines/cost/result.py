"""A predicted cost as JSON: what `reptrt cost --json` prints."""

from __future__ import annotations

from typing import TypedDict

from reptrt.engines.cost.estimate import EngineCost


class KernelResult(TypedDict):
    """One kernel; `bound` is what takes longest in it: compute, memory or launch."""

    name: str
    kind: str
    dtype: str
    microseconds: float
    megabytes: float
    gigaoperations: float
    bound: str


class CostResult(TypedDict):
    """An engine's predicted cost, the slowest kernels first; `low` and `high` enclose `milliseconds`."""

    gpu: str
    batch: int
    origin: str
    milliseconds: float
    low: float
    high: float
    megabytes: float
    bound: str
    kernels: list[KernelResult]


def cost_result(cost: EngineCost, batch: int, origin: str) -> CostResult:
    """Return the cost as JSON, rounded to what it is worth."""
    return CostResult(
        gpu=cost.gpu,
        batch=batch,
        origin=origin,
        milliseconds=round(cost.milliseconds, 4),
        low=round(cost.low, 4),
        high=round(cost.high, 4),
        megabytes=round(cost.megabytes, 3),
        bound=cost.bound,
        kernels=[
            KernelResult(
                name=one.name,
                kind=one.kind,
                dtype=one.dtype,
                microseconds=round(one.microseconds, 2),
                megabytes=round(one.megabytes, 4),
                gigaoperations=round(one.gigaoperations, 4),
                bound=one.bound,
            )
            for one in cost.slowest_first
        ],
    )
