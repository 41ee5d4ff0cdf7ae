"""What a report says in a few lines: the verdict, and FP32 beside the quantized model.

The HTML page and the terminal table are both made from it, so that they never disagree.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Literal, NamedTuple

from reptrt.engines.report_schema import (
    Accuracy,
    BlockLoss,
    ComparisonRow,
    End2End,
    OutputNumerics,
    Percentiles,
    Report,
)
from reptrt.pipeline.report.number_format import (
    MISSING,
    decibel,
    duration,
    file_size,
    milliseconds,
    number,
    percent,
    ratio,
)

PERCENTILES: tuple[Literal["p50", "p90", "p99"], ...] = ("p50", "p90", "p99")
FULL_BITS = 8

_METRIC_NAMES = {
    "top1": "top-1",
    "top5": "top-5",
    "map_50_95": "mAP 50–95",
    "map_50": "mAP 50",
}


class SummaryRow(NamedTuple):
    """One line of the comparison; every cell is text, "–" where there is nothing to say."""

    label: str
    fp32: str
    quantized: str
    change: str


class Verdict(NamedTuple):
    """The sentence at the top; `gate` is passed, failed or absent."""

    sentence: str
    gate: Literal["passed", "failed", "absent"]
    gate_text: str


def metric_name(metric: str) -> str:
    """Return the name readers know a metric by."""
    return _METRIC_NAMES.get(metric, metric)


def precision_name(report: Report) -> str:
    """Return "INT8", or bits of weights and activations where they are not both eight."""
    weight_bits, activation_bits = report.get("weight_bits"), report.get("activation_bits")
    if weight_bits == activation_bits == FULL_BITS:
        return "INT8"
    return f"W{weight_bits or '?'}A{activation_bits or '?'}"


def verdict(report: Report) -> Verdict:
    """Say in one sentence what quantization cost, and whether the accuracy gate passed."""
    gate = report.get("gate") or {}
    limit, passed = gate.get("max_drop"), gate.get("passed")
    sentence = _sentence(report)
    if limit is None or passed is None:
        return Verdict(sentence, "absent", "No accuracy gate")
    text = f"limit {number(limit, 2)} points"
    if passed:
        return Verdict(sentence, "passed", f"Gate passed, {text}")
    if not report.get("accuracy"):
        text = f"{text}, but no accuracy was measured (--eval)"
    return Verdict(sentence, "failed", f"Gate failed, {text}")


def _sentence(report: Report) -> str:
    precision, accuracy = precision_name(report), report.get("accuracy")
    if not accuracy:
        note = report.get("accuracy_note")
        return f"Accuracy was not measured: {note}" if note else "Accuracy was not measured"
    drop, metric = accuracy.get("drop"), metric_name(accuracy.get("metric") or "accuracy")
    values = f"{percent(accuracy.get('quantized'))} against {percent(accuracy.get('fp32'))}"
    if drop is None or not math.isfinite(drop):
        return f"The drop in {metric} is unknown: {values}"
    if round(drop, 2) < 0:
        return f"{precision} is {number(-drop, 2)} points of {metric} above FP32: {values}"
    if round(drop, 2) == 0:
        return f"{precision} keeps the {metric} of FP32: {values}"
    return f"{precision} loses {number(drop, 2)} points of {metric}: {values}"


def accuracy_rows(report: Report) -> list[SummaryRow]:
    """Compare the main metric, the further ones, and how often the two models agree."""
    accuracy = report.get("accuracy")
    if not accuracy:
        return []
    metric = accuracy.get("metric") or "accuracy"
    rows = [_metric_row(metric, accuracy.get("fp32"), accuracy.get("quantized"))]
    for name, pair in (accuracy.get("extra") or {}).items():
        rows.append(_metric_row(name, pair.get("fp32"), pair.get("quantized")))
    rows.append(SummaryRow("agreement with FP32", "", percent(accuracy.get("agreement")), ""))
    return rows


def _metric_row(name: str, fp32: float | None, quantized: float | None) -> SummaryRow:
    change = MISSING
    if fp32 is not None and quantized is not None:
        change = number(quantized - fp32, 2, "points", sign=True)
    return SummaryRow(metric_name(name), percent(fp32), percent(quantized), change)


def numerics_rows(report: Report) -> list[SummaryRow]:
    """Give each output's SNR and cosine against FP32."""
    return [
        SummaryRow(
            f"output {name}",
            "",
            decibel(output.get("snr_db")),
            f"cosine {number(output.get('cosine'), 5)}{_largest(output)}",
        )
        for name, output in (report.get("numerics") or {}).items()
    ]


def _largest(output: OutputNumerics) -> str:
    """The largest score, where an output has scores."""
    before, after = output.get("largest_fp32"), output.get("largest_quantized")
    if before is None or after is None:
        return ""
    return f", largest {number(before, 3)} → {number(after, 3)}"


def engine_note(report: Report) -> str:
    """Say how close what is deployed comes to the Q/DQ model; "" where it did not run."""
    numerics = report.get("engine_numerics")
    if not numerics:
        return ""
    if any(output.get("cosine") is None for output in numerics.values()):
        return "What is deployed: an output is not finite"
    least = worst_snr(numerics)
    close = "equals the Q/DQ model" if least is None else f"{decibel(least)} from the Q/DQ model"
    return f"What is deployed: {close} in ONNX Runtime"


def deployment_note(report: Report) -> str:
    """Say what to deploy and why; "" where the report does not say."""
    reason, deploy = report.get("deploy_reason") or "", report.get("deploy")
    return f"Deploy {deploy.upper()}: {reason}" if deploy else reason


def latency_rows(report: Report) -> list[SummaryRow]:
    """Compare the latency percentiles."""
    latency = report.get("latency_ms")
    if not latency:
        return []
    fp32: Percentiles = latency.get("fp32") or {}
    quantized: Percentiles = latency.get("quantized") or {}
    return [
        SummaryRow(
            f"latency {name}",
            milliseconds(fp32.get(name)),
            milliseconds(quantized.get(name)),
            ratio(fp32.get(name), quantized.get(name), "faster", "slower"),
        )
        for name in PERCENTILES
    ]


def engine_rows(report: Report) -> list[SummaryRow]:
    """Compare file sizes, and say how much of the network runs in INT8."""
    sizes, fusion = report.get("size_bytes") or {}, report.get("fusion")
    engine, fp32 = sizes.get("engine"), sizes.get("fp32_onnx")
    rows = []
    if sizes:
        change = ratio(fp32, engine, "smaller", "larger")
        rows.append(SummaryRow("ONNX → engine", file_size(fp32), file_size(engine), change))
    if fusion:
        layers = (
            f"{_count(fusion.get('int8_layers'))} of {_count(fusion.get('quantizable_layers'))}"
        )
        rows.append(SummaryRow("layers in INT8", "", layers, percent(fusion.get("int8_coverage"))))
        if fusion.get("attention_blocks"):
            blocks = _count(fusion.get("attention_blocks"))
            fused = f"{_count(fusion.get('fused_attention'))} of {blocks}"
            label = f"attention ({report.get('softmax')}) in one kernel"
            rows.append(SummaryRow(label, "", fused, ""))
        rows.append(SummaryRow("kernels", "", _count(fusion.get("kernels")), ""))
    return rows


def _count(value: int | None) -> str:
    return number(value, 0)


def latency_origin(report: Report) -> str:
    """Say where the latency was measured and what it says nothing about; "" without latency."""
    latency = report.get("latency_ms")
    if not latency:
        return ""
    backend = (latency.get("backend") or "an unnamed backend").strip()
    library = backend.lower().replace(" ", "").replace("_", "")
    origin = f"{backend} on {latency.get('device') or 'an unnamed device'}"
    if library.startswith("onnxruntime") and report.get("backend", "").startswith("onnxruntime"):
        return f"Measured with {origin}"
    if library.startswith("onnxruntime"):
        return (
            f"Measured with ONNX Runtime on the CPU ({origin}): "
            "no oracle for the speed of the TensorRT engine"
        )
    if library.startswith("tensorrtrtx"):
        return f"Measured with {origin}: no oracle for the speed of classic TensorRT"
    return f"Measured with {origin}"


def sample_note(accuracy: Accuracy | None) -> str:
    """Say on how many images the accuracy stands; "" where that is unknown."""
    count = accuracy.get("num_images") if accuracy else None
    if not accuracy or not count:
        return ""
    images = f"{number(count, 0)} {'image' if count == 1 else 'images'}"
    if accuracy.get("metric") != "top1":
        return images
    return f"{images}: one image is {number(100 / count, 2)} points"


def end2end_note(end2end: End2End | None) -> str:
    """Say what NMS inside the engine keeps, and whether its boxes are those NumPy finds."""
    if not end2end:
        return ""
    images = end2end["num_images"]
    same = round(end2end["identical"] * images / 100)
    return (
        f"score above {end2end['score_threshold']:g}, IoU {end2end['iou_threshold']:g}, at most "
        f"{end2end['max_detections']} boxes; equal to NumPy’s in {same} of {images} images, F1 "
        f"{percent(end2end['agreement'])}"
    )


def total_time(report: Report) -> str:
    """Write the seconds of all stages together; "–" without stages."""
    seconds = [value for value in (report.get("seconds") or {}).values() if value is not None]
    return duration(sum(seconds)) if seconds else MISSING


def reconstruction_note(blocks: Sequence[BlockLoss]) -> str:
    """Say how much learning the blocks brought, and how long it took."""
    changes = [value for block in blocks if (value := loss_change(block)) is not None]
    seconds = [block["seconds"] for block in blocks if block["seconds"] is not None]
    count = f"{number(len(blocks), 0)} {'block' if len(blocks) == 1 else 'blocks'}"
    if not changes:
        return f"{count} in {duration(sum(seconds))}"
    return f"{count} in {duration(sum(seconds))}, median change {change(median(changes))}"


def change(value: float | None) -> str:
    """Write a change in percent."""
    return number(value, 1, "%", sign=True)


def loss_change(block: BlockLoss) -> float | None:
    """Change of a block's loss in percent of what it was; None where that says nothing."""
    before, after = block["before"], block["after"]
    if before is None or after is None or not before > 0 or not math.isfinite(after / before):
        return None
    return 100 * (after / before - 1)


def calibrator_name(row: ComparisonRow) -> str:
    """Return what the user asked for, and behind it what it became where that is another."""
    name, method = row["calibrator"], row["method"]
    return name if method == name else f"{name} ({method})"


def worst_snr(numerics: Mapping[str, OutputNumerics]) -> float | None:
    """SNR in dB of the output that lost most; None where every output is exact."""
    values = [output.get("snr_db") for output in numerics.values()]
    return min((value for value in values if value is not None), default=None)
