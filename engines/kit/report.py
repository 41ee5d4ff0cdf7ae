"""Report of a build kit's run on its device: report.json, with the keys of `reptrt report`, and text."""

from __future__ import annotations

import platform
import resource
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from reptrt.engines.artifacts import file_sha256
from reptrt.engines.build.builder import BuildResult
from reptrt.engines.foreign.text import visible
from reptrt.engines.inspection.kernels import Kernel, LayerListError, parse_kernels
from reptrt.engines.kit.manifest import Manifest
from reptrt.engines.kit.verification import EngineCheck
from reptrt.engines.report_schema import (
    DeviceLatency,
    FileSizes,
    Fusion,
    Gate,
    ModelLatency,
    Percentiles,
    Report,
)
from reptrt.engines.runtime.benchmark import Latency
from reptrt.engines.target import Target


@dataclass(frozen=True)
class Verification:
    """How an engine that a kit built did on the kit's references; `failures` say what it missed.

    `top1`: percent of the images with a clear class that get it. `agreement`: mean F1 of the boxes, in
    percent. `ran`: `engine`, or `onnxruntime` where the ONNX file ran instead.
    """

    ran: str
    top1: float | None
    agreement: float | None
    failures: tuple[str, ...]


@dataclass(frozen=True)
class LayerDifference:
    """A layer that runs in another precision than the kit expects: `int8`, `float` or `absent`."""

    layer: str
    expected: str
    found: str


@dataclass(frozen=True, kw_only=True)
class KitReport(Report):
    """Content of the report.json that a build kit writes on its device.

    `accuracy` was measured where the kit was made, with `kit_versions`. `engine` and its hash are
    None where the engine was refused.
    """

    verification: Verification
    layer_differences: tuple[LayerDifference, ...] = ()
    kit_versions: Mapping[str, str | None] | None = None
    engine: str | None = None
    engine_sha256: str | None = None


@dataclass(frozen=True)
class TriedEngine:
    """A built engine, how close it is to the references, and how fast.

    Attributes:
        built: the engine.
        check: how close it is to the references.
        latency: of the usual batch.
        seconds: that verification and measuring took.
        ran: `engine`, or `onnxruntime` where the ONNX file ran instead.
    """

    built: BuildResult
    check: EngineCheck
    latency: Latency
    seconds: float
    ran: str


def layer_precisions(names: Iterable[str], kernels: Sequence[Kernel]) -> dict[str, str]:
    """Return `int8`, `float`, or `absent` where no kernel multiplies for it, of each layer."""
    found = {}
    for name in names:
        mine = [one for one in kernels if one.multiplies_weights and name in one.onnx_layers]
        precision = "int8" if all(one.is_int8 for one in mine) else "float"
        found[name] = precision if mine else "absent"
    return found


def report_content(
    manifest: Manifest,
    target: Target,
    tried: TriedEngine,
    kit: Path,
    notes: Sequence[str],
    engine: Path | None,
) -> KitReport:
    """What is known of the engine; `engine` is None where it was refused."""
    built, check = tried.built, tried.check
    layers = _layers(manifest, built)
    here = {"python": platform.python_version(), "numpy": np.__version__}
    facts = replace(manifest.run, versions={**here, built.backend: built.version})
    return KitReport(
        **vars(facts),
        target=target.name,
        backend=f"{built.backend} {built.version}",
        accuracy_note="measured when the kit was made, not of this engine",
        numerics=check.numerics,
        verification=Verification(tried.ran, check.top1, check.agreement, check.failures),
        latency_ms=_model_latency(tried.latency),
        fusion=layers.fusion,
        layer_differences=layers.differences,
        size_bytes=FileSizes(
            trt_onnx=(kit / manifest.onnx).stat().st_size, engine=built.size_bytes
        ),
        seconds={"build": round(built.seconds, 2), "validate": round(tried.seconds, 2)},
        peak_rss_mb=round(_peak_rss_bytes() / 1e6, 1),
        kit_versions=manifest.run.versions,
        gate=Gate(passed=engine is not None),
        notes=(*notes, *layers.notes),
        command=" ".join(sys.argv),
        engine=None if engine is None else str(engine),
        engine_sha256=None if engine is None else file_sha256(built.engine_path),
    )


def report_text(report: KitReport) -> str:
    """Return the same in a few lines."""
    check = report.verification
    lines = [f"{report.model} · {report.target} · {report.backend}"]
    for name, output in (report.numerics or {}).items():
        lines.append(f"output {name}: {output.snr_db:.1f} dB, cosine {output.cosine:.5f}")
    if check.top1 is not None:
        lines.append(f"same class as the reference: {check.top1:.0f} %")
    if check.agreement is not None:
        lines.append(f"agreement of the boxes: {check.agreement:.1f} %")
    lines += _latency_lines(report.latency_ms or ModelLatency())
    if report.fusion is not None:
        int8, all_layers = report.fusion.int8_layers, report.fusion.quantizable_layers
        lines.append(f"layers in INT8: {int8} of {all_layers}")
    lines += [
        f"layer {one.layer}: {one.expected} expected, {one.found} found"
        for one in report.layer_differences
    ]
    lines += [f"note: {note}" for note in report.notes]
    lines += [f"FAILED: {failure}" for failure in check.failures]
    refused = "REFUSED: nothing is installed"
    lines.append(refused if report.engine is None else f"installed: {report.engine}")
    return "\n".join(map(visible, lines)) + "\n"


@dataclass(frozen=True)
class _Layers:
    fusion: Fusion | None
    differences: tuple[LayerDifference, ...]
    notes: tuple[str, ...]


def _layers(manifest: Manifest, built: BuildResult) -> _Layers:
    """What runs in INT8, and which layers differ from what the kit expects."""
    try:
        kernels = parse_kernels(built.layers)
    except LayerListError as error:
        return _Layers(None, (), (f"layers are unknown: {error}",))
    found = layer_precisions(manifest.layers, kernels)
    int8_layers = list(found.values()).count("int8")
    fusion = Fusion(
        int8_layers=int8_layers,
        quantizable_layers=len(found),
        int8_coverage=round(100 * int8_layers / len(found), 2) if found else 0.0,
        kernels=len(kernels),
    )
    differences = tuple(
        LayerDifference(layer, expected, found[layer])
        for layer, expected in manifest.layers.items()
        if found[layer] != expected
    )
    return _Layers(fusion, differences, ())


def _model_latency(latency: Latency) -> ModelLatency:
    alone = latency.device_only
    return ModelLatency(
        quantized=_percentiles(latency),
        device_only=None if alone is None else DeviceLatency(quantized=_percentiles(alone)),
        backend=latency.backend,
        device=latency.device,
    )


def _percentiles(latency: Latency) -> Percentiles:
    return Percentiles(*(round(value, 3) for value in (latency.p50, latency.p90, latency.p99)))


def _latency_lines(latency: ModelLatency) -> list[str]:
    lines = [f"latency {_in_words(latency.quantized)}"]
    if latency.device_only is not None:
        lines.append(f"without copies {_in_words(latency.device_only.quantized)}")
    return [*lines, f"measured with {latency.backend} on {latency.device}"]


def _in_words(percentiles: Percentiles | None) -> str:
    if percentiles is None:
        return "was not measured"
    return ", ".join(f"{key} {value:.3f} ms" for key, value in vars(percentiles).items())


def _peak_rss_bytes() -> int:
    kibibytes = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kibibytes
