"""How far INT8 answers as FP32 does on images without labels: standard library only, as the report that shows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from reptrt.engines.foreign.ranges import Count, Percent

Bound = Literal["proof", "estimate"]


@dataclass(frozen=True)
class Likeness:
    """What is known of a drop in accuracy where no label says what is right.

    Where both networks answer alike, both are right or both are wrong: `metric` falls by `most_drop` at most,
    which is 100 less its value for INT8 with FP32's answers as labels. Of boxes nothing follows from that: their
    `most_drop` is an estimate, from the noise at the outputs.

    Attributes:
        metric: `top1`, `miou` or `map_50_95`: whose drop it is.
        agreement: as `Accuracy.agreement`.
        num_images: that were compared.
        num_calibrated: of these, that calibrated too.
        most_drop: most points that INT8 loses on these images, or an estimate of what it loses.
        interval: 95 % interval of `most_drop`, in points; None where there is none.
        bound: what `most_drop` is.
        is_telling: FP32 does not give the same answer to all images.
    """

    metric: str
    agreement: Percent
    num_images: Count
    num_calibrated: Count
    most_drop: float
    interval: tuple[float, float] | None = None
    bound: Bound = "proof"
    is_telling: bool = True
