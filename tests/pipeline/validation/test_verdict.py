"""What the verdict says of a drop on labelled images: what is lost or gained, and how sure that is."""

from __future__ import annotations

import pytest

from reptrt.engines.report_schema import Accuracy, OutputNumerics, Validation
from reptrt.pipeline.validation.verdict import Bounds, judge


@pytest.mark.parametrize(
    ("drop", "most", "limit", "decision", "reason"),
    [
        (0.5, 0.9, 1.0, "passed", "INT8 loses 0.50 points, at most 0.90"),
        (-0.83, -0.19, 0.3, "passed", "INT8 gains 0.83 points, at least 0.19"),
        (-0.28, 0.25, 0.3, "passed", "INT8 gains 0.28 points, and may lose up to 0.25"),
        (-0.28, 0.62, 0.3, "failed", "INT8 gains 0.28 points on 700 images, and may lose up to 0.62, and the limit is 0.30"),
        (0.1, 0.62, 0.3, "failed", "INT8 loses 0.10 points on 700 images, which may be up to 0.62, and the limit is 0.30"),
        (0.5, 0.9, 0.3, "failed", "INT8 loses 0.50 points, and the limit is 0.30"),
    ],
)  # fmt: skip
def test_a_drop_is_told_as_what_is_lost_or_gained(
    drop: float, most: float, limit: float, decision: str, reason: str
) -> None:
    accuracy = Accuracy(
        "top1", 80.0, 80.0 - drop, drop, 98.0, 700, drop_interval=(drop - 1, most),
        fp32_interval=(77.0, 83.0), chance=0.1,
    )  # fmt: skip
    numerics = {"logits": OutputNumerics(20.0, 0.99)}
    found = judge(Validation(accuracy=accuracy, numerics=numerics), Bounds(max_drop=limit))
    assert found.decision == decision
    assert found.reason.startswith(reason)
