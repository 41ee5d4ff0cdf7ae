"""What was tried to stay within an accuracy budget: standard library only, as the report that shows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from reptrt.engines.foreign.ranges import Amount, Count, NotEmpty, Percent

Outcome = Literal["met", "missed", "undecided", "hopeless"]
"""Undecided: too few labelled images to be sure. Hopeless: it is not INT8 that fails, but FP32 or the images."""


@dataclass(frozen=True)
class Attempt:
    """One choice of layers in INT8, calibrated, exported and measured.

    Attributes:
        gain: dB at the outputs, by the best baseline, that were asked for above what all layers in INT8
            have; 0 in the first round, None where nothing is in INT8.
        reached: dB above all layers in INT8 that the choice has; None where that was not measured.
        int8_layers: convolutions and linears in INT8.
        layers: all of them.
        outcome: by the checks of the gate.
        reason: what the failed checks say, else what the accuracy is.
        trt_onnx: SHA-256 of the file that was measured.
        drop: of accuracy, in points; without labels `Likeness.most_drop`.
        drop_at_most: upper end of its 95 % interval, in points; None where there is none.
        agreement: with FP32, in percent.
        snr_db: of the worst output; None where every output is exact.
        milliseconds: predicted for the target; None where there is no data sheet.
        fp16_milliseconds: predicted for the FP16 engine; None likewise.
        fp8_attention: whether attention is in FP8.
        is_provable: there are enough images that the upper end of the drop would be within the budget, if no answer changed.
    """

    gain: float | None
    reached: float | None
    int8_layers: Count
    layers: Count
    outcome: Outcome
    reason: str
    trt_onnx: str
    drop: float | None = None
    drop_at_most: float | None = None
    agreement: Percent | None = None
    snr_db: float | None = None
    milliseconds: Amount | None = None
    fp16_milliseconds: Amount | None = None
    fp8_attention: bool = False
    is_provable: bool = False

    @property
    def choice(self) -> str:
        """What is in INT8 and FP8, for people."""
        layers = f"{self.int8_layers} of {self.layers} layers in INT8"
        return f"{layers}, attention in FP8" if self.fp8_attention else layers

    @property
    def pays(self) -> bool:
        """Whether its engine is predicted faster than FP16's, as far as that is known."""
        if self.milliseconds is None or self.fp16_milliseconds is None:
            return True
        return self.milliseconds < self.fp16_milliseconds


@dataclass(frozen=True)
class BudgetSearch:
    """Content of budget.json: the last attempt is the choice.

    Attributes:
        max_drop: the budget, in points.
        attempts: in the order in which they were tried.
        reason: why the search ended, and with what.
    """

    max_drop: float
    attempts: Annotated[tuple[Attempt, ...], NotEmpty()]
    reason: str

    def made(self, trt_onnx: str) -> bool:
        """Whether the choice is the file with this SHA-256."""
        return bool(self.attempts) and self.attempts[-1].trt_onnx == trt_onnx

    @property
    def is_float(self) -> bool:
        """Whether nothing in INT8 was within the budget at a gain."""
        return self.attempts[-1].gain is None
