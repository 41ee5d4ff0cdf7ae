"""The evidence for people: what report.json and fusion.json say, as one self-contained HTML page."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from reptrt.engines.histogram_record import LayerHistograms
from reptrt.engines.inspection.kernels import Kernel
from reptrt.engines.report_schema import FileSizes, LayerSnr, Report
from reptrt.pipeline.report import number_format, summary
from reptrt.pipeline.report.budget_view import attempt_rows, budget_chart, budget_unit
from reptrt.pipeline.report.charts import (
    BarChart,
    DotRow,
    LevelChart,
    bar_chart,
    dot_row,
    is_finite,
    level_chart,
    loss_chart,
    snr_strip,
    worst_layers,
)
from reptrt.pipeline.report.example_images import Picture
from reptrt.pipeline.report.examples import Examples
from reptrt.pipeline.report.layer_table import layer_rows
from reptrt.pipeline.report.next_steps import next_steps
from reptrt.pipeline.report.page import write_page
from reptrt.pipeline.report.precision import engine_precision
from reptrt.pipeline.report.tiles import tiles
from reptrt.pipeline.validation.verdict import judged_on

_WORST_LAYERS = 15
_LEAST_DECIBELS = 6.0
_PNG_MAGIC = b"\x89PNG"


class KernelRow(NamedTuple):
    """What the table shows of one kernel; `inputs` and `outputs` are the datatypes."""

    name: str
    kind: str
    layers: tuple[str, ...]
    inputs: list[str]
    outputs: list[str]
    int8: bool


def write_html(
    report: Report,
    fusion_table: Sequence[Kernel],
    examples: Examples,
    path: Path,
    histograms: Mapping[str, LayerHistograms] | None = None,
) -> None:
    """Write the report as one HTML file without external references.

    Args:
        report: What is known of the run.
        fusion_table: `fused_kernels` of fusion.json, or nothing.
        examples: Some images, and what both models make of them.
        path: The file to write.
        histograms: Content of histograms.json, or nothing.
    """
    view = _view(report, fusion_table, examples, histograms or {})
    write_page("report.html.j2", view, path, sortable=True)


def _view(
    report: Report,
    fusion_table: Sequence[Kernel],
    examples: Examples,
    histograms: Mapping[str, LayerHistograms],
) -> dict[str, object]:
    """Compute everything the template shows; layout is the template's."""
    layers = report.layers
    worst = worst_layers(layers, max(1, min(_WORST_LAYERS, len(layers) // 4)))
    return {
        "report": report,
        "headline": summary.headline(report),
        "precision": engine_precision(report),
        "summary_groups": _summary_groups(report),
        "setup": _setup(report),
        "sample_note": summary.sample_note(report.accuracy),
        "latency_origin": summary.latency_origin(report),
        "shortfall_note": summary.shortfall_note(report),
        "deployment_note": summary.deployment_note(report),
        "engine_note": summary.engine_note(report),
        "total_time": summary.total_time(report),
        "accuracy_chart": _accuracy_chart(report),
        "latency_chart": _latency_chart(report),
        "predicted_chart": _predicted_chart(report),
        "files": _files(report.size_bytes),
        "layers": layers,
        "strip": snr_strip(layers, worst),
        "worst": worst,
        "worst_widths": _worst_widths(layers, worst),
        "tiles": tiles(report),
        "attempts": attempt_rows(report),
        "budget_chart": budget_chart(report),
        "budget_unit": budget_unit(report),
        "calibrators_chart": _calibrators_chart(report),
        "layer_rows": layer_rows(report, fusion_table, histograms),
        "next_steps": next_steps(report),
        "loss_chart": loss_chart(report.blocks),
        "reconstruction_note": summary.reconstruction_note(report.blocks),
        "kernels": _kernels(report, fusion_table),
        "pictures": [_picture(picture) for picture in (examples.detections or examples.masks)],
        "has_masks": bool(examples.masks),
        "changed": [(image, _data_uri(image.jpeg)) for image in examples.classes],
        "command": report.command,
    }


def _files(sizes: FileSizes | None) -> list[tuple[str, int | None]]:
    """Name and bytes of each file."""
    if sizes is None:
        return []
    return [
        ("FP32 ONNX", sizes.fp32_onnx), ("Q/DQ ONNX", sizes.trt_onnx), ("engine", sizes.engine)
    ]  # fmt: skip


def _worst_widths(layers: Sequence[LayerSnr], worst: Sequence[LayerSnr]) -> list[float]:
    """Return the bar lengths of the `worst` layers in percent of the best finite layer's."""
    finite = [value for layer in layers if is_finite(value := layer.snr_db)]
    chart = bar_chart(
        [("", [("worst", layer.snr_db, "") for layer in worst])], max(finite, default=None)
    )
    return [bar.width for bar in chart.groups[0].bars]


def _summary_groups(report: Report) -> list[list[summary.SummaryRow]]:
    groups = [
        summary.accuracy_rows(report),
        summary.numerics_rows(report),
        summary.latency_rows(report),
        summary.engine_rows(report),
    ]
    return [group for group in groups if group]


def _setup(report: Report) -> list[tuple[str, str]]:
    """Name what was run, in the order in which it was chosen."""
    memory = report.peak_rss_mb
    images = report.accuracy.num_images if report.accuracy else None
    evaluated = None if images is None else f"{images} images"
    if report.likeness is not None:
        evaluated = f"{judged_on(report.likeness)}, without labels"
    rows = [
        ("Model", report.model),
        ("Calibrator", report.calibrator or "none: the scales of the file"),
        ("Weights", f"{report.weight_bits} bits"),
        ("Activations", f"{report.activation_bits} bits"),
        ("Not in INT8", report.precision.upper()),
        ("Calibrated on", f"{report.num_samples} images, seed {report.seed}"),
        ("Evaluated on", evaluated),
        ("NMS in the engine", summary.nms_note(report.end2end)),
        ("Target", report.target),
        ("Backend", report.backend),
        ("Time", summary.total_time(report)),
        ("Peak memory", number_format.file_size(None if memory is None else memory * 1e6)),
    ]
    absent = "NMS in the engine" if report.end2end is None else None
    return [
        (label, str(value or number_format.MISSING)) for label, value in rows if label != absent
    ]


def _accuracy_chart(report: Report) -> list[DotRow]:
    """A row for each metric; behind the main one stands FP32's interval."""
    accuracy = report.accuracy
    if accuracy is None:
        return []
    rows = []
    for name, pair in accuracy.pairs.items():
        values = (("fp32", pair.fp32), ("quantized", pair.quantized))
        band = accuracy.fp32_interval if name == accuracy.metric else None
        text = f"{number_format.percent(pair.fp32)} → {number_format.percent(pair.quantized)}"
        rows.append(dot_row(summary.metric_name(name), values, band, text))
    return [row for row in rows if row is not None]


def _calibrators_chart(report: Report) -> LevelChart | None:
    """SNR of each calibrator that was tried, best first; the one that was kept stands out."""
    tried = {
        name: value for name, value in (report.calibrators_db or {}).items() if is_finite(value)
    }
    if not tried:
        return None
    rows = []
    for name in sorted(tried, key=lambda name: -tried[name]):
        series = "quantized" if name == report.calibrator else "fp32"
        rows.append((name, series, tried[name], number_format.decibel(tried[name])))
    return level_chart(rows, _LEAST_DECIBELS)


def _latency_chart(report: Report) -> BarChart | None:
    if report.latency_ms is None:
        return None
    groups = []
    for name, fp32, quantized in summary.latency_pairs(report.latency_ms):
        values = (("fp32", fp32), ("quantized", quantized))
        bars = [(series, value, number_format.milliseconds(value)) for series, value in values]
        groups.append((name, bars))
    return bar_chart(groups)


def _predicted_chart(report: Report) -> BarChart | None:
    """Predicted times of both engines, where no time was measured."""
    if report.cost is None or report.latency_ms is not None:
        return None
    values = (("fp32", report.cost.fp16), ("quantized", report.cost.int8))
    bars = [
        (series, one.milliseconds, number_format.milliseconds(one.milliseconds))
        for series, one in values
    ]
    return bar_chart([("1 batch" if report.cost.batch > 1 else "1 image", bars)])


def _kernels(report: Report, table: Sequence[Kernel]) -> list[KernelRow]:
    """Reduce each kernel to what the table shows.

    A kernel is INT8 where it reads Int8 activations and weights and none of its layers is a float
    island.
    """
    islands = report.fusion.float_islands if report.fusion else None
    floats = {island.layer for island in islands or ()}
    rows = []
    for kernel in table:
        reads_int8 = bool(kernel.inputs) and kernel.inputs[0].dtype == "Int8"
        multiplies = kernel.multiplies_weights
        rows.append(
            KernelRow(
                name=kernel.name,
                kind=kernel.kind,
                layers=kernel.onnx_layers,
                inputs=list(dict.fromkeys(tensor.dtype for tensor in kernel.inputs)),
                outputs=list(dict.fromkeys(tensor.dtype for tensor in kernel.outputs)),
                int8=multiplies and reads_int8 and floats.isdisjoint(kernel.onnx_layers),
            )
        )
    return rows


def _picture(picture: Picture) -> dict[str, str]:
    """Embed both images as data URIs."""
    return {
        "title": picture.title,
        "note": picture.note,
        "fp32": _data_uri(picture.fp32_png),
        "quantized": _data_uri(picture.quantized_png),
    }


def _data_uri(image: bytes) -> str:
    kind = "png" if image.startswith(_PNG_MAGIC) else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(image).decode('ascii')}"
