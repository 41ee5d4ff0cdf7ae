"""The evidence for people: what report.json and fusion.json say, as one self-contained HTML page."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from reptrt.engines.inspection.kernel_record import KernelEntry, read_kernel_entry
from reptrt.engines.report_schema import LayerSnr, Picture, Report
from reptrt.pipeline.report import number_format, summary
from reptrt.pipeline.report.charts import (
    BarChart,
    bar_chart,
    is_finite,
    loss_chart,
    snr_strip,
    worst_layers,
)
from reptrt.pipeline.report.page import write_page

_WORST_LAYERS = 15
_PERCENT = 100.0
_FILE_NAMES = {"fp32_onnx": "FP32 ONNX", "trt_onnx": "Q/DQ ONNX", "engine": "engine"}
_PNG_MAGIC = b"\x89PNG"


def write_html(
    report: Mapping[str, object],
    fusion_table: Sequence[KernelEntry],
    pictures: Sequence[Picture],
    path: Path,
) -> None:
    """Write the report as one HTML file without scripts or external references.

    Args:
        report: Content of report.json (`reptrt.engines.report_schema.Report`).
        fusion_table: `fused_kernels` of fusion.json, or nothing.
        pictures: Detections of both models on some images, or nothing.
        path: The file to write.
    """
    write_page("report.html.j2", _view(cast(Report, report), fusion_table, pictures), path)


def _view(
    report: Report, fusion_table: Sequence[KernelEntry], pictures: Sequence[Picture]
) -> dict[str, object]:
    """Compute everything the template shows; layout is the template's."""
    blocks = report.get("blocks") or []
    layers = report.get("layers") or []
    worst = worst_layers(layers, _WORST_LAYERS)
    marked = worst[: max(1, len(layers) // 4)]
    return {
        "report": {**dict.fromkeys(Report.__annotations__), **report},
        "verdict": summary.verdict(report),
        "precision": summary.precision_name(report),
        "summary_groups": _summary_groups(report),
        "setup": _setup(report),
        "sample_note": summary.sample_note(report.get("accuracy")),
        "latency_origin": summary.latency_origin(report),
        "deployment_note": summary.deployment_note(report),
        "engine_note": summary.engine_note(report),
        "total_time": summary.total_time(report),
        "accuracy_chart": _accuracy_chart(report),
        "latency_chart": _latency_chart(report),
        "files": [
            (_FILE_NAMES.get(name, name), size)
            for name, size in (report.get("size_bytes") or {}).items()
        ],
        "layers": layers,
        "strip": snr_strip(layers, marked),
        "worst": worst,
        "worst_widths": _worst_widths(layers, worst),
        "marked": len(marked),
        "loss_chart": loss_chart(blocks),
        "reconstruction_note": summary.reconstruction_note(blocks),
        "kernels": _kernels(report, fusion_table),
        "pictures": [_picture(picture) for picture in pictures],
        "command": report.get("command"),
    }


def _worst_widths(layers: Sequence[LayerSnr], worst: Sequence[LayerSnr]) -> list[float]:
    """Return the bar lengths of the `worst` layers in percent of the best finite layer's."""
    finite = [value for layer in layers if is_finite(value := layer.get("snr_db"))]
    chart = bar_chart(
        [("", [("worst", layer.get("snr_db"), "") for layer in worst])], max(finite, default=None)
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
    memory, samples = report.get("peak_rss_mb"), report.get("num_samples")
    images = (report.get("accuracy") or {}).get("num_images")
    rows = [
        ("Model", report.get("model")),
        ("Calibrator", report.get("calibrator")),
        ("Weights", f"{report.get('weight_bits') or number_format.MISSING} bits"),
        ("Activations", f"{report.get('activation_bits') or number_format.MISSING} bits"),
        ("Not in INT8", (report.get("precision") or "").upper()),
        (
            "Calibrated on",
            None if samples is None else f"{samples} images, seed {report.get('seed')}",
        ),
        ("Evaluated on", None if images is None else f"{images} images"),
        ("NMS in the engine", summary.end2end_note(report.get("end2end"))),
        ("Target", report.get("target")),
        ("Backend", report.get("backend")),
        ("Time", summary.total_time(report)),
        ("Peak memory", number_format.file_size(None if memory is None else memory * 1e6)),
    ]
    absent = "NMS in the engine" if not report.get("end2end") else None
    return [
        (label, str(value or number_format.MISSING)) for label, value in rows if label != absent
    ]


def _accuracy_chart(report: Report) -> BarChart | None:
    accuracy = report.get("accuracy")
    if not accuracy:
        return None
    named = {accuracy.get("metric") or "accuracy": accuracy, **(accuracy.get("extra") or {})}
    groups = []
    for name, pair in named.items():
        values = (("fp32", pair.get("fp32")), ("quantized", pair.get("quantized")))
        bars = [(series, value, number_format.percent(value)) for series, value in values]
        groups.append((summary.metric_name(name), bars))
    return bar_chart(groups, _PERCENT)


def _latency_chart(report: Report) -> BarChart | None:
    latency = report.get("latency_ms")
    if not latency:
        return None
    both = (
        ("fp32", latency.get("fp32") or {}),
        ("quantized", latency.get("quantized") or {}),
    )
    groups = []
    for name in summary.PERCENTILES:
        values = [(series, percentiles.get(name)) for series, percentiles in both]
        bars = [(series, value, number_format.milliseconds(value)) for series, value in values]
        groups.append((name, bars))
    return bar_chart(groups)


def _kernels(report: Report, table: Sequence[KernelEntry]) -> list[dict[str, object]]:
    """Reduce each kernel to what the table shows.

    A kernel is INT8 where it reads Int8 activations and weights and none of its layers is a float
    island.
    """
    fusion = report.get("fusion") or {}
    floats = {island.get("layer") for island in fusion.get("float_islands") or []}
    rows: list[dict[str, object]] = []
    for entry in table:
        kernel = read_kernel_entry(entry)
        reads_int8 = bool(kernel.inputs) and kernel.inputs[0].dtype == "Int8"
        multiplies = kernel.multiplies_weights
        rows.append(
            {
                "name": kernel.name,
                "kind": kernel.kind,
                "layers": kernel.onnx_layers,
                "inputs": list(dict.fromkeys(one.dtype for one in kernel.inputs)),
                "outputs": list(dict.fromkeys(one.dtype for one in kernel.outputs)),
                "int8": multiplies and reads_int8 and floats.isdisjoint(kernel.onnx_layers),
            }
        )
    return rows


def _picture(picture: Picture) -> dict[str, str]:
    """Embed both images as data URIs."""
    return {
        "title": picture["title"],
        "note": picture["note"],
        "fp32": _data_uri(picture["fp32_png"]),
        "quantized": _data_uri(picture["quantized_png"]),
    }


def _data_uri(image: bytes) -> str:
    kind = "png" if image.startswith(_PNG_MAGIC) else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(image).decode('ascii')}"
