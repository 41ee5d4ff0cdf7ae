"""What a report says in a few lines: the verdict, and FP32 beside the quantized model.

The HTML page and the terminal table are both made from it, so that they never disagree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import Literal, NamedTuple

from reptrt.engines.comparison_record import ComparisonRow
from reptrt.engines.report_schema import (
    Accuracy,
    BlockLoss,
    End2End,
    ModelLatency,
    Numerics,
    OutputNumerics,
    Percentiles,
    Report,
    Validation,
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
from reptrt.pipeline.report.precision import engine_precision

PERCENTILES: tuple[Literal["p50", "p90", "p99"], ...] = ("p50", "p90", "p99")
FINE = 0.5
"""Points of accuracy. With a larger standard error, agreement and KL divergence tell more than the drop."""

_METRIC_NAMES = {
    "top1": "top-1",
    "top5": "top-5",
    "map_50_95": "mAP 50–95",
    "map_50": "mAP 50",
    "miou": "mIoU",
}


class SummaryRow(NamedTuple):
    """One line of the comparison; every cell is text, "–" where there is nothing to say."""

    label: str
    fp32: str
    quantized: str
    change: str


class Headline(NamedTuple):
    """The sentence at the top; `gate` is passed, failed or absent."""

    sentence: str
    gate: Literal["passed", "failed", "absent"]
    gate_text: str


def metric_name(metric: str) -> str:
    """Return the name readers know a metric by."""
    return _METRIC_NAMES.get(metric, metric)


def reference_name(report: Report) -> str:
    """What the quantized model is compared with."""
    return "FP32" if report.reference == "float" else "the file"


def comparison_lines(validation: Validation | Report) -> tuple[str, ...]:
    """What a file that brought its own scales was compared with; nothing for other models."""
    if validation.reference == "file":
        return (
            "Compared with the quantized file itself in ONNX Runtime; what its quantization cost is not"
            " known: give its float model (`float_model`)",
        )
    if validation.file_numerics is None:
        return ()
    least = worst_snr(validation.file_numerics)
    close = "equal outputs" if least is None else f"SNR {decibel(least)} at the worst output"
    return (f"Compared with its float model; against the quantized file itself: {close}",)


def headline(report: Report) -> Headline:
    """Say in one sentence what quantization cost, and whether the gate passed."""
    verdict, sentence, limit = report.verdict, _sentence(report), report.gate.max_drop
    missed = [check.reason for check in verdict.checks if not check.passed]
    if report.gate.passed is None:
        would_fail = f"; one would fail: {missed[0]}" if missed else ""
        return Headline(sentence, "absent", f"No accuracy gate{would_fail}")
    bound = "" if limit is None else f", limit {number(limit, 2)} points"
    if report.gate.passed:
        return Headline(sentence, "passed", f"Gate passed{bound}")
    forced = ", forced" if verdict.forced else ""
    reason = f": {verdict.reason}" if verdict.reason else ""
    return Headline(sentence, "failed", f"Gate failed{bound}{forced}{reason}")


def _sentence(report: Report) -> str:
    precision, accuracy = engine_precision(report), report.accuracy
    if accuracy is None and (likeness := report.likeness) is not None:
        images = (
            f"{number(likeness.num_images, 0)} {'image' if likeness.num_images == 1 else 'images'}"
        )
        close = f"agrees with {reference_name(report)} to {percent(likeness.agreement)} on {images}"
        return f"No label was seen: {precision} {close}"
    if accuracy is None:
        note = report.accuracy_note
        return f"Accuracy was not measured: {note}" if note else "Accuracy was not measured"
    drop, metric = accuracy.drop, metric_name(accuracy.metric)
    values = f"{percent(accuracy.quantized)} against {percent(accuracy.fp32)}"
    if drop is None or not math.isfinite(drop):
        return f"The drop in {metric} is unknown: {values}"
    if round(drop, 2) < 0:
        return f"{precision} is {number(-drop, 2)} points of {metric} above {reference_name(report)}: {values}"
    if round(drop, 2) == 0:
        return f"{precision} keeps the {metric} of {reference_name(report)}: {values}"
    return f"{precision} loses {number(drop, 2)} points of {metric}: {values}"


def accuracy_rows(report: Report) -> list[SummaryRow]:
    """Compare the main metric, the further ones, and how close the two models are.

    The latter come first where labels are too few to tell accuracies `FINE` points apart.
    """
    accuracy, label = report.accuracy, f"agreement with {reference_name(report)}"
    if accuracy is None:
        alike = report.likeness
        return [SummaryRow(label, "", percent(alike.agreement), "no label seen")] if alike else []
    error = accuracy.standard_error
    rows = [_metric_row(name, pair.fp32, pair.quantized) for name, pair in accuracy.pairs.items()]
    close = [SummaryRow(label, "", percent(accuracy.agreement), "")]
    if accuracy.divergence is not None:
        close.append(SummaryRow("KL divergence", "", number(accuracy.divergence, 4), ""))
    if error is None or error <= FINE:
        return [*rows, *close]
    first = rows[0]._replace(label=f"{rows[0].label} (standard error {number(error, 1)})")
    return [*close, first, *rows[1:]]


def _metric_row(name: str, fp32: float | None, quantized: float | None) -> SummaryRow:
    change = MISSING
    if fp32 is not None and quantized is not None:
        change = number(quantized - fp32, 2, "points", sign=True)
    return SummaryRow(metric_name(name), percent(fp32), percent(quantized), change)


def numerics_rows(report: Report) -> list[SummaryRow]:
    """Give each output's SNR and cosine against FP32, the worst first."""
    by_snr = sorted((report.numerics or {}).items(), key=lambda item: _order(item[1]))
    return [
        SummaryRow(
            f"output {name}",
            "",
            decibel(output.snr_db),
            f"cosine {number(output.cosine, 5)}{_largest(output)}",
        )
        for name, output in by_snr
    ]


def _order(output: OutputNumerics) -> float:
    """Not finite before low SNR, exact last."""
    if output.cosine is None:
        return -math.inf
    return math.inf if output.snr_db is None else output.snr_db


def _largest(output: OutputNumerics) -> str:
    """The largest score, where an output has scores."""
    before, after = output.largest_fp32, output.largest_quantized
    if before is None or after is None:
        return ""
    return f", largest {number(before, 3)} → {number(after, 3)}"


def engine_note(report: Report) -> str:
    """Compare the outputs of the built engine with those of the Q/DQ model; "" where it did not run."""
    numerics = report.engine_numerics
    if not numerics:
        return ""
    if any(output.cosine is None for output in numerics.values()):
        return "Engine against the Q/DQ model: an output of the engine is not finite"
    least = worst_snr(numerics)
    close = "equal outputs" if least is None else f"SNR {decibel(least)} at the worst output"
    return f"Engine against the Q/DQ model in ONNX Runtime: {close}"


def shortfall_note(report: Report) -> str:
    """Say that quality is low, where, and what to do next; "" where it is not."""
    short = report.verdict.shortfall
    if short is None:
        return ""
    more = f", the worst of {short.num_short}" if short.num_short > 1 else ""
    return (
        f"Low quality: output {short.output} has {decibel(short.snr_db)} against FP32, below"
        f" {decibel(short.bound)}{more}; {short.remedy}"
    )


def deployment_note(report: Report) -> str:
    """Say what to deploy and why; "" where the report does not say."""
    if report.deploy is None:
        return report.deploy_reason
    return f"Deploy {report.deploy.upper()}: {report.deploy_reason}"


def latency_rows(report: Report) -> list[SummaryRow]:
    """Compare the latency percentiles."""
    if report.latency_ms is None:
        return []
    return [
        SummaryRow(
            f"latency {name}",
            milliseconds(fp32),
            milliseconds(quantized),
            ratio(fp32, quantized, "faster", "slower"),
        )
        for name, fp32, quantized in latency_pairs(report.latency_ms)
    ]


def latency_pairs(latency: ModelLatency) -> list[tuple[str, float | None, float | None]]:
    """Name of each percentile, and that of FP32 and of INT8 in milliseconds."""
    fp32, quantized = latency.fp32 or Percentiles(), latency.quantized or Percentiles()
    return [(name, getattr(fp32, name), getattr(quantized, name)) for name in PERCENTILES]


def engine_rows(report: Report) -> list[SummaryRow]:
    """Compare file sizes, and say how much of the network runs in INT8."""
    sizes, fusion = report.size_bytes, report.fusion
    rows = cost_rows(report)
    if sizes is not None and report.backend.startswith("onnxruntime"):
        change = ratio(sizes.fp32_onnx, sizes.engine, "smaller", "larger")
        rows.append(
            SummaryRow("ONNX file", file_size(sizes.fp32_onnx), file_size(sizes.engine), change)
        )
    elif sizes is not None and report.cost is None:
        rows.append(SummaryRow("engine file", "", file_size(sizes.engine), ""))
    if fusion:
        layers = f"{_count(fusion.int8_layers)} of {_count(fusion.quantizable_layers)}"
        rows.append(SummaryRow("layers in INT8", "", layers, percent(fusion.int8_coverage)))
        if fusion.attention_blocks:
            fused = f"{_count(fusion.fused_attention)} of {_count(fusion.attention_blocks)}"
            label = f"attention ({report.softmax}) in one kernel"
            rows.append(SummaryRow(label, "", fused, ""))
        if report.cost is None:
            rows.append(SummaryRow("kernels", "", _count(fusion.kernels), ""))
    return rows


def cost_rows(report: Report) -> list[SummaryRow]:
    """Compare the INT8 engine with the FP16 engine of the same network: predicted time, bytes, kernels."""
    cost = report.cost
    if cost is None:
        return []
    int8, fp16 = cost.int8, cost.fp16
    images = "1 image" if cost.batch == 1 else f"{cost.batch} images"
    rows = [
        SummaryRow(
            f"{images}, FP16, predicted",
            milliseconds(fp16.milliseconds),
            milliseconds(int8.milliseconds),
            ratio(fp16.milliseconds, int8.milliseconds, "faster", "slower"),
        ),
        SummaryRow(
            "moved, FP16",
            file_size(1e6 * fp16.traffic.megabytes),
            file_size(1e6 * int8.traffic.megabytes),
            ratio(fp16.traffic.megabytes, int8.traffic.megabytes, "less", "more"),
        ),
        SummaryRow(
            "kernels, FP16",
            _count(fp16.traffic.kernels),
            _count(int8.traffic.kernels),
            ratio(fp16.traffic.kernels, int8.traffic.kernels, "fewer", "more"),
        ),
    ]
    if fp16.engine_bytes is not None and int8.engine_bytes is not None:
        change = ratio(fp16.engine_bytes, int8.engine_bytes, "smaller", "larger")
        sizes = (file_size(fp16.engine_bytes), file_size(int8.engine_bytes))
        rows.append(SummaryRow("engine file, FP16", *sizes, change))
    return rows


def _count(value: int | None) -> str:
    return number(value, 0)


def latency_origin(report: Report) -> str:
    """Say where the latency was measured, and what it is no evidence for; "" without latency."""
    latency = report.latency_ms
    if latency is None:
        return ""
    backend = (latency.backend or "an unnamed backend").strip()
    library = backend.lower().replace(" ", "").replace("_", "")
    origin = f"{backend} on {latency.device or 'an unnamed device'}"
    if library.startswith("onnxruntime") and report.backend.startswith("onnxruntime"):
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
    """Say how many images the accuracy was measured on; "" where that is unknown."""
    if accuracy is None or not accuracy.num_images:
        return ""
    count = accuracy.num_images
    images = f"{number(count, 0)} {'image' if count == 1 else 'images'}"
    if accuracy.metric != "top1":
        return images
    return f"{images}: one image is {number(100 / count, 2)} points"


def nms_note(end2end: End2End | None) -> str:
    """Say what NMS inside the engine keeps, and whether its boxes are those NumPy finds."""
    if not end2end:
        return ""
    images = end2end.num_images
    same = round(end2end.identical * images / 100)
    return (
        f"score above {end2end.score_threshold:g}, IoU {end2end.iou_threshold:g}, at most "
        f"{end2end.max_detections} boxes; equal to NumPy’s in {same} of {images} images, F1 "
        f"{percent(end2end.agreement)}"
    )


def total_time(report: Report) -> str:
    """Write the seconds of all stages together; "–" without stages."""
    seconds = [value for value in (report.seconds or {}).values() if value is not None]
    return duration(sum(seconds)) if seconds else MISSING


def reconstruction_note(blocks: Sequence[BlockLoss]) -> str:
    """Say by how much block reconstruction reduced the losses, how many blocks learned, and how long it took."""
    changes = [value for block in blocks if (value := loss_change(block)) is not None]
    seconds = [block.seconds for block in blocks if block.seconds is not None]
    count = f"{number(len(blocks), 0)} {'block' if len(blocks) == 1 else 'blocks'}"
    parts = [f"{count} in {duration(sum(seconds))}" if seconds else count]
    learned = [block.steps for block in blocks if block.steps]
    if any(block.reason for block in blocks):
        parts.append(f"{number(len(learned), 0)} of them learned, {number(sum(learned), 0)} steps")
    if changes:
        parts.append(f"median change {change(median(changes))}")
    return ", ".join(parts)


def change(value: float | None) -> str:
    """Write a change in percent."""
    return number(value, 1, "%", sign=True)


def loss_change(block: BlockLoss) -> float | None:
    """Change of a block's loss in percent of its first value; None where one of the two is not positive."""
    before, after = block.before, block.after
    if before is None or after is None or not before > 0 or not math.isfinite(after / before):
        return None
    return 100 * (after / before - 1)


def calibrator_name(row: ComparisonRow) -> str:
    """Return the calibrator that the user asked for, followed by the one that `auto` or `best` chose."""
    name, method = row.calibrator, row.method
    return name if method == name else f"{name} ({method})"


def worst_snr(numerics: Numerics) -> float | None:
    """Lowest SNR in dB over the outputs; None where every output is exact."""
    values = [output.snr_db for output in numerics.values()]
    return min((value for value in values if value is not None), default=None)
