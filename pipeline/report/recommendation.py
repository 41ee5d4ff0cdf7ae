"""Which model to deploy: INT8 only where it is faster than the float model and meets the accuracy gate."""

from __future__ import annotations

from typing import NamedTuple

from reptrt.calibrators.settings import NO_CALIBRATOR
from reptrt.engines.report_schema import Deploy, Percentiles, Report
from reptrt.pipeline.report.number_format import milliseconds, number, ratio
from reptrt.pipeline.report.precision import precision_name
from reptrt.pipeline.report.summary import metric_name

MIN_SPEEDUP = 1.02
"""A smaller gain may be noise: the guard that NVIDIA/Model-Optimizer#2318 has too."""


_OF_FP32 = ("FP32 accuracy", "input", "accuracy")
"""Checks without which no engine of the network is any good."""


class Deployment(NamedTuple):
    """Which model to deploy (None where speed or accuracy is unknown, or no model is usable), and why."""

    deploy: Deploy | None
    reason: str


class _Race(NamedTuple):
    """Milliseconds of the quantized model and of the float one it has to beat; medians, if measured.

    `spread` is the uncertainty of a predicted time in percent; None where both were measured.
    """

    float_name: Deploy
    float_ms: float
    quantized_ms: float
    gpu: str = ""
    spread: float | None = None

    @property
    def is_won(self) -> bool:
        return self.float_ms >= MIN_SPEEDUP * self.quantized_ms


def choose_deployment(report: Report) -> Deployment:
    """Judge by the report's accuracy, gate, latencies and FP16's outputs.

    On a GPU the float model is the FP16 engine, and the copies to and from the GPU are left out; for the
    target `cpu` it is FP32 in ONNX Runtime. Where no GPU runs the engine, both times are predicted.
    """
    precision, race, loss = precision_name(report), _race(report), _loss(report)
    if race is None:
        return Deployment(
            None,
            f"{precision} was not compared with FP16: no GPU here runs the engine, and the target has"
            " no data sheet to predict by",
        )
    if report.calibrator == NO_CALIBRATOR and race.float_name == "fp16":
        return Deployment("fp16", "INT8 is not predicted to be faster on any layer")
    speed = f"{precision} {_speed(race)}"
    failed = report.gate.passed is False
    if report.budget is not None and report.budget.is_float and report.gate.passed:
        return Deployment(race.float_name, report.budget.reason)
    if race.float_name == "fp16" and _overflows(report):
        reason = f"FP16 overflows; {speed}, and {loss}"
        return Deployment(None if failed else "int8", reason)
    if failed:
        if any(check.name in _OF_FP32 and not check.passed for check in report.verdict.checks):
            return Deployment(None, report.verdict.reason)
        limit = number(report.gate.max_drop, 2)
        reason = f"{precision} {loss}, and the limit is {limit}"
        if report.verdict.decision == "failed":
            reason = report.verdict.reason
        return Deployment(race.float_name, reason)
    if (short := report.verdict.shortfall) is not None:
        reason = f"{precision} leaves output {short.output} only {short.snr_db:.1f} dB"
        return Deployment(race.float_name, f"{reason}; it {_speed(race)}")
    return (
        Deployment("int8", f"{speed}, and {loss}")
        if race.is_won
        else Deployment(race.float_name, speed)
    )


def _race(report: Report) -> _Race | None:
    latency = report.latency_ms
    if latency is None:
        return _predicted(report)
    if latency.device_only is not None:
        return _medians("fp16", latency.device_only.fp16, latency.device_only.quantized)
    if report.backend.startswith("onnxruntime"):
        return _medians("fp32", latency.fp32, latency.quantized)
    return _predicted(report)


def _predicted(report: Report) -> _Race | None:
    """Both engines by the cost model."""
    cost = report.cost
    if cost is None:
        return None
    spread = 100 * (cost.int8.high / cost.int8.milliseconds - 1)
    return _Race("fp16", cost.fp16.milliseconds, cost.int8.milliseconds, cost.gpu, spread)


def _medians(
    name: Deploy, float_latency: Percentiles | None, quantized: Percentiles | None
) -> _Race | None:
    if (
        float_latency is None
        or float_latency.p50 is None
        or quantized is None
        or quantized.p50 is None
    ):
        return None
    return _Race(name, float_latency.p50, quantized.p50)


def _overflows(report: Report) -> bool:
    return any(output.cosine is None for output in (report.fp16_numerics or {}).values())


def _speed(race: _Race) -> str:
    times = f"{milliseconds(race.quantized_ms)} against {milliseconds(race.float_ms)}"
    factor = ratio(race.float_ms, race.quantized_ms, "faster", "slower")
    is_close = 1 / MIN_SPEEDUP < race.float_ms / race.quantized_ms < MIN_SPEEDUP
    how = "not faster" if is_close else factor
    if race.spread is None:
        return f"is {how} than {race.float_name.upper()} ({times})"
    predicted = f"predicted ± {number(race.spread, 0)} % on {race.gpu}"
    return f"is {how} than {race.float_name.upper()} ({times}, {predicted})"


def _loss(report: Report) -> str:
    accuracy, likeness = report.accuracy, report.likeness
    if accuracy is None and likeness is not None:
        how = "can lose" if likeness.bound == "proof" else "loses, by an estimate,"
        points = f"{number(likeness.most_drop, 2)} points of {metric_name(likeness.metric)}"
        return f"{how} {points}: no label was seen"
    if accuracy is None or accuracy.drop is None:
        return "its accuracy was not measured"
    metric, interval = metric_name(accuracy.metric), ""
    if accuracy.drop_interval is not None:
        low, high = (number(end, 2) for end in accuracy.drop_interval)
        interval = f" (95 %: {low} to {high})"
    if round(accuracy.drop, 2) <= 0:
        return f"loses no {metric}{interval}"
    return f"loses {number(accuracy.drop, 2)} points of {metric}{interval}"
