"""What a model is called after its types: INT8, W4A8, FP16."""

from __future__ import annotations

from typing import Protocol

from reptrt.calibrators.settings import NO_CALIBRATOR
from reptrt.engines.report_schema import Report
from reptrt.pipeline.recipe import FULL_BITS


class Bits(Protocol):
    """A report or a recipe."""

    @property
    def weight_bits(self) -> int:
        """Of the weights."""

    @property
    def activation_bits(self) -> int:
        """Of the activations."""


def precision_name(bits: Bits) -> str:
    """Return "INT8", or bits of weights and activations where they are not both eight."""
    if bits.weight_bits == bits.activation_bits == FULL_BITS:
        return "INT8"
    return f"W{bits.weight_bits}A{bits.activation_bits}"


def engine_precision(report: Report) -> str:
    """Return `precision_name`, or the type of the whole network where no layer of it is quantized."""
    if report.calibrator == NO_CALIBRATOR:
        return (report.precision or "fp32").upper()
    return precision_name(report)
