"""What was tried to stay within the accuracy budget: lines, a table, and accuracy against milliseconds."""

from __future__ import annotations

from collections.abc import Sequence

from reptrt.engines.budget_record import Attempt
from reptrt.engines.report_schema import Report
from reptrt.pipeline.report import number_format
from reptrt.pipeline.report.charts import is_finite
from reptrt.pipeline.report.scatter_chart import Sample, ScatterChart, scatter_chart


def budget_lines(report: Report) -> list[str]:
    """For the terminal: a line for each round, where there was more than one."""
    attempts = report.budget.attempts if report.budget else ()
    if len(attempts) < 2:
        return []
    return [f"Round {index}: {describe(one)}" for index, one in enumerate(attempts, start=1)]


def describe(attempt: Attempt) -> str:
    """Layers, loss and time of one round."""
    parts = [layers_text(attempt), f"loses {loss_text(attempt)}" if is_finite(attempt.drop) else ""]
    if is_finite(attempt.milliseconds):
        parts.append(f"{number_format.milliseconds(attempt.milliseconds)} predicted")
    return f"{', '.join(part for part in parts if part)}: {attempt.outcome}"


def layers_text(attempt: Attempt) -> str:
    """How many layers are in INT8."""
    return f"{attempt.int8_layers} of {attempt.layers} layers in INT8"


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
            "layers": layers_text(one),
            "drop": loss_text(one),
            "agreement": number_format.percent(one.agreement),
            "snr": number_format.decibel(one.snr_db),
            "milliseconds": number_format.milliseconds(one.milliseconds),
            "outcome": one.outcome,
        }
        for one in attempts
    ]


def budget_chart(report: Report) -> ScatterChart | None:
    """Accuracy, or SNR of the worst output, against predicted milliseconds; FP16 stands for no loss.

    None where no time is predicted or nothing was measured.
    """
    attempts = report.budget.attempts if report.budget else ()
    accuracy = report.accuracy
    fp32 = accuracy.fp32 if accuracy else None
    write = number_format.percent if is_finite(fp32) else number_format.decibel
    samples = []
    for one in attempts:
        level = fp32 - one.drop if is_finite(fp32) and is_finite(one.drop) else one.snr_db
        if is_finite(one.milliseconds) and is_finite(level):
            label = f"{one.int8_layers} INT8" + (" (chosen)" if one is attempts[-1] else "")
            samples.append(Sample(one.milliseconds, level, label, write(level)))
    return scatter_chart(_with_fp16(samples, attempts, fp32), fp32) if samples else None


def _with_fp16(
    samples: Sequence[Sample], attempts: Sequence[Attempt], fp32: float | None
) -> list[Sample]:
    """The samples, and the FP16 engine at FP32's accuracy where it is none of them."""
    time = attempts[-1].fp16_milliseconds
    if not is_finite(time) or not is_finite(fp32) or not attempts[-1].int8_layers:
        return list(samples)
    return [*samples, Sample(time, fp32, "FP16", number_format.percent(fp32))]
