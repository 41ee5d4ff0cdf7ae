"""What was found of the calibrators that `reptrt compare` tried: standard library only, as the page that shows it."""

from __future__ import annotations

from dataclasses import dataclass

from reptrt.engines.budget_record import Attempt
from reptrt.engines.foreign.ranges import Amount, Count
from reptrt.engines.likeness_record import Likeness
from reptrt.engines.report_schema import Accuracy, Numerics


@dataclass(frozen=True, kw_only=True)
class ComparisonRow:
    """One calibrator in compare-w8a8.json; `method` is what `auto` or a fallback chose.

    `attempts`: choices of layers in INT8 that were measured; the row is of the last one.
    """

    calibrator: str
    method: str
    num_samples: Count
    accuracy: Accuracy | None = None
    likeness: Likeness | None = None
    numerics: Numerics
    attempts: tuple[Attempt, ...] = ()
    seconds: Amount | None = None
    peak_rss_mb: Amount | None = None

    @property
    def agreement(self) -> float | None:
        """With FP32 in percent, on labelled images or others; None where it is not known."""
        answers = self.accuracy or self.likeness
        return answers.agreement if answers else None
