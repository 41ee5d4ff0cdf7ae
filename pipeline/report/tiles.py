"""The three numbers of a report's first screen."""

from __future__ import annotations

from typing import NamedTuple

from reptrt.engines.report_schema import Report
from reptrt.pipeline.report.number_format import MISSING, decibel, number, percent, ratio
from reptrt.pipeline.report.summary import metric_name, sample_note, worst_snr


class Tile(NamedTuple):
    """A number of the first screen, what it is, and what it is measured on."""

    value: str
    label: str
    note: str


def tiles(report: Report) -> list[Tile]:
    """Three numbers: what INT8 loses, how often it agrees with FP32, how fast it is beside FP16."""
    return [_loss_tile(report), _agreement_tile(report), _speed_tile(report)]


def _loss_tile(report: Report) -> Tile:
    accuracy, likeness = report.accuracy, report.likeness
    if accuracy is None and likeness is not None:
        how = "can be lost" if likeness.bound == "proof" else "lost, by an estimate"
        text = f"of {metric_name(likeness.metric)} {how}"
        return Tile(number(likeness.most_drop, 2, "points"), text, "no label was seen")
    if accuracy is None or accuracy.drop is None:
        worst = worst_snr(report.numerics or {})
        return Tile(decibel(worst), "SNR at the worst output", "accuracy was not measured")
    note = ""
    if accuracy.drop_interval is not None:
        low, high = (number(end, 2) for end in accuracy.drop_interval)
        note = f"95 % interval of the loss: {low} to {high}"
    drop, metric = round(accuracy.drop, 2), metric_name(accuracy.metric)
    if drop < 0:
        return Tile(number(-drop, 2, "points"), f"of {metric} gained", note)
    return Tile(number(abs(drop), 2, "points"), f"of {metric} lost", note)


def _agreement_tile(report: Report) -> Tile:
    accuracy, likeness = report.accuracy, report.likeness
    if accuracy is None and likeness is not None:
        note = f"{number(likeness.num_images, 0)} images without labels"
        return Tile(percent(likeness.agreement), "agreement with FP32", note)
    if accuracy is None or accuracy.agreement is None:
        return Tile(MISSING, "agreement with FP32", "no labelled images")
    return Tile(percent(accuracy.agreement), "agreement with FP32", sample_note(accuracy) or "")


def _speed_tile(report: Report) -> Tile:
    alone = report.latency_ms.device_only if report.latency_ms else None
    if alone is not None and alone.fp16 and alone.quantized:
        times = (alone.fp16.p50, alone.quantized.p50)
        return _beside_fp16(*times, "measured")
    if report.cost is not None:
        times = (report.cost.fp16.milliseconds, report.cost.int8.milliseconds)
        return _beside_fp16(*times, f"predicted, {report.cost.gpu}")
    return Tile(MISSING, "speed beside FP16", "neither measured nor predicted")


def _beside_fp16(fp16: float | None, int8: float | None, note: str) -> Tile:
    text = ratio(fp16, int8, "faster", "slower")
    is_close = not text.endswith(("faster", "slower"))
    return Tile(text, "speed as FP16" if is_close else "than FP16", note)
