"""Reports for tests: what a test does not say has a value that it does not care about."""

from __future__ import annotations

from typing import Any

from reptrt.engines.report_schema import Report, RunFacts

FACTS = RunFacts(
    model="net", calibrator="minmax", weight_bits=8, activation_bits=8, precision="fp32",
    softmax="float", num_samples=64, seed=0,
)  # fmt: skip


def make_report(**values: Any) -> Report:
    where = {"target": "tensorrt-rtx", "backend": "tensorrt_rtx 1.7.0"}
    return Report(**{**vars(FACTS), **where, **values})
