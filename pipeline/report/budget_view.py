"""What was tried to stay within the accuracy budget: lines, a table, and accuracy against milliseconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reptrt.engines.budget_record import Attempt
from reptrt.engines.likeness_record import Likeness
from reptrt.engines.report_schema import Accuracy, Report
from reptrt.pipeline.report import number_format
from reptrt.pipeline.report.charts import is_finite
from reptrt.pipeline.report.scatter_chart import Sample, ScatterChart, scatter_chart


def budget_lines(report: Report) -> list[str]:
    """For the terminal: a line for each round, where there was more than one."""
    attempts = report.budget.attempts if report.budget else ()
    if len(attempts) < 2:
        return []
    verb = "loses" if report.likeness is None else "can lose"
    return [f"Round {index}: {describe(one, verb)}" for index, one in enumerate(attempts, start=1)]


def describe(attempt: Attempt, verb: str = "loses") -> str:
    """Layers, loss and time of one round."""
    parts = [
        attempt.choice,
        f"{verb} {loss_text(attempt)}" if is_finite(attempt.drop) else "",
    ]
    if is_finite(attempt.milliseconds):
        parts.append(f"{number_format.milliseconds(attempt.milliseconds)} predicted")
    return f"{', '.join(part for part in parts if part)}: {attempt.outcome}"


def loss_text(attempt: Attempt) -> str:
    """The drop, and its upper end where it has one."""
    most = attempt.drop_at_most
    text = number_format.number(attempt.drop, 2, "points")
    return f"{text}, at most {number_format.number(most, 2)}" if is_finite(most) else text


def attempt_rows(report: Report) -> list[dict[str, str]]:
    """Everything that the table shows of each round; the last one is the choice."""
    attempts = report.budget.attempts if report.budget else ()
    return [
        {
            "layers": one.choice,
            "drop": loss_text(one),
            "agreement": number_format.percent(one.agreement),
            "snr": number_format.decibel(one.snr_db),
            "milliseconds": number_format.milliseconds(one.milliseconds),
            "outcome": one.outcome,
        }
        for one in attempts
    ]


def budget_unit(report: Report) -> str:
    """Of the chart's levels: accuracy, agreement where there are no labels, or SNR."""
    return "dB" if top_level(report.accuracy, report.likeness) is None else "%"


def budget_chart(report: Report) -> ScatterChart | None:
    """Every attempt of the search; see `attempts_chart`."""
    attempts = report.budget.attempts if report.budget else ()
    return attempts_chart({"": attempts}, top_level(report.accuracy, report.likeness))


def top_level(accuracy: Accuracy | None, likeness: Likeness | None) -> float | None:
    """Percent that no loss is: FP32's accuracy, or all answers; None where loss is not measured in points."""
    if accuracy is not None:
        return accuracy.fp32 if is_finite(accuracy.fp32) else None
    return 100.0 if likeness is not None else None


def attempts_chart(
    attempts: Mapping[str, Sequence[Attempt]], top: float | None
) -> ScatterChart | None:
    """Accuracy, agreement or SNR of the worst output against predicted milliseconds; FP16 stands for no loss.

    None where no time is predicted or nothing was measured.

    Args:
        attempts: by the name of who made them; where there are several, the last one is the choice.
        top: see `top_level`; None charts SNR.
    """
    write = number_format.decibel if top is None else number_format.percent
    samples = []
    for name, tried in attempts.items():
        for one in tried:
            level = one.snr_db if top is None else None if one.drop is None else top - one.drop
            if is_finite(one.milliseconds) and is_finite(level):
                chosen = " (chosen)" if one is tried[-1] and len(tried) > 1 else ""
                label = f"{name} {_int8(one)}{chosen}".strip()
                samples.append(Sample(one.milliseconds, level, label, write(level)))
    every = [one for tried in attempts.values() for one in tried]
    fp16 = next((one.fp16_milliseconds for one in every if is_finite(one.fp16_milliseconds)), None)
    if samples and fp16 is not None and top is not None and all(one.int8_layers for one in every):
        samples.append(Sample(fp16, top, "FP16", write(top)))
    return scatter_chart(samples, top) if samples else None


def _int8(attempt: Attempt) -> str:
    """How many layers are in INT8, for a label."""
    if not attempt.int8_layers:
        return "FP16"
    share = "all" if attempt.int8_layers == attempt.layers else str(attempt.int8_layers)
    return f"{share} INT8, FP8 attention" if attempt.fp8_attention else f"{share} INT8"
