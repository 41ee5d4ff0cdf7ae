"""A row for each layer: what it runs in, its error, its time and bytes, and why it is not INT8."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import NamedTuple

from reptrt.engines.cost.estimate import CostError, KernelCost, estimate_cost, scale_batch
from reptrt.engines.cost.kernel_time import work_of
from reptrt.engines.foreign.text import visible
from reptrt.engines.histogram_record import LayerHistograms
from reptrt.engines.inspection.kernel import Kernel
from reptrt.engines.report_schema import FloatIsland, Report
from reptrt.engines.target_table import TARGETS
from reptrt.pipeline.report.number_format import decibel, number


class LayerRow(NamedTuple):
    """One layer; `microseconds` and `megabytes` are its share of the kernels that hold it, at batch 1.

    They are predicted, and None where the target names no GPU or the layer is in no kernel. `runs` is INT8,
    the type of the rest (FP16, FP32), or "" where no engine was looked at.
    """

    layer: str
    op: str
    runs: str
    snr_db: float | None
    microseconds: float | None
    megabytes: float | None
    reason: str
    bits: str = ""
    """Of weights and activations, as `w4a6`; "" where the layer is float, or nothing says it."""
    detail: str = ""
    """JSON of its histograms and kernels, which the page shows on request; "" where nothing is known."""


def layer_rows(
    report: Report,
    kernels: Sequence[Kernel],
    histograms: Mapping[str, LayerHistograms] | None = None,
) -> list[LayerRow]:
    """The layers that were compared, in the order of the graph.

    Args:
        report: with SNR, and the reasons of layers that stay float.
        kernels: of the INT8 engine.
        histograms: by layer.
    """
    floats = {island.layer: island.reason for island in _islands(report)}
    costs = _costs(report, kernels)
    rows = []
    for layer in report.layers:
        runs = (
            ""
            if report.fusion is None
            else report.precision.upper()
            if layer.layer in floats
            else "INT8"
        )
        shares, seen = costs.get(layer.layer), (histograms or {}).get(layer.layer)
        rows.append(
            LayerRow(
                layer.layer,
                layer.op,
                runs,
                layer.snr_db,
                None if shares is None else sum(one.microseconds / of for one, of in shares),
                None if shares is None else sum(one.megabytes / of for one, of in shares),
                floats.get(layer.layer, ""),
                _bits(seen),
                _detail(layer.layer, kernels, seen),
            )
        )
    return rows


def _bits(seen: LayerHistograms | None) -> str:
    return f"w{seen.bits[0]}a{seen.bits[1]}" if seen and seen.bits else ""


def describe(row: LayerRow) -> str:
    """One line on a layer, for who points at it."""
    parts = [f"{row.layer} ({row.op}): {decibel(row.snr_db)}"]
    if row.runs:
        parts.append(f"runs in {row.runs} {row.bits}".rstrip())
    if row.microseconds is not None and row.megabytes is not None:
        parts.append(f"{number(row.microseconds, 1)} µs, {number(row.megabytes, 2)} MB, predicted")
    return "; ".join([*parts, row.reason] if row.reason else parts)


def _detail(layer: str, kernels: Sequence[Kernel], found: LayerHistograms | None) -> str:
    names = [visible(one.name) for one in kernels if layer in one.onnx_layers]
    if not kernels and found is None:
        return ""
    return json.dumps({**(asdict(found) if found else {}), "kernels": names})


def _islands(report: Report) -> Sequence[FloatIsland]:
    return (report.fusion.float_islands or ()) if report.fusion else ()


def _costs(report: Report, kernels: Sequence[Kernel]) -> dict[str, list[tuple[KernelCost, int]]]:
    """Layer -> its kernels, each with the number of compared layers that share it."""
    sheet = TARGETS[report.target].data_sheet if report.target in TARGETS else None
    if sheet is None or not kernels:
        return {}
    every = scale_batch(kernels, 1.0)
    single = [one for one in every if one.has_shapes or work_of(one) == "none"]
    try:
        priced = {one.name: one for one in estimate_cost(single, sheet).kernels}
    except CostError:
        return {}
    # What is partly in a kernel that an engine for several batches tells nothing of has no price.
    unknown = {name for one in every if one not in single for name in one.onnx_layers}
    compared = {layer.layer for layer in report.layers} - unknown
    found: dict[str, list[tuple[KernelCost, int]]] = {}
    for kernel in single:
        inside = [name for name in kernel.onnx_layers if name in compared]
        if kernel.name in priced:
            for name in inside:
                found.setdefault(name, []).append((priced[kernel.name], len(inside)))
    return found
