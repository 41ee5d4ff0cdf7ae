"""What came out of a build kit on its device: report.json with the keys of `reptrt report`, and text."""

from __future__ import annotations

import platform
import resource
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reptrt.engines.artifacts import file_sha256
from reptrt.engines.build.builder import BuildResult
from reptrt.engines.foreign.text import visible
from reptrt.engines.inspection.kernels import Kernel, LayerListError, parse_kernels
from reptrt.engines.kit.manifest import Manifest
from reptrt.engines.kit.verification import Verdict
from reptrt.engines.runtime.benchmark import Latency
from reptrt.engines.target import Target


@dataclass(frozen=True)
class Trial:
    """An engine and how it did.

    Attributes:
        built: the engine.
        verdict: how close it is to the references.
        latency: of the usual batch.
        seconds: that verification and measuring took.
        ran: `engine`, or `onnxruntime` where the ONNX file ran instead.
    """

    built: BuildResult
    verdict: Verdict
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
    trial: Trial,
    kit: Path,
    notes: Sequence[str],
    engine: Path | None,
) -> dict[str, Any]:
    """Content of report.json; `engine` is None where it was refused."""
    built, verdict, latency = trial.built, trial.verdict, trial.latency
    layers = _layers(manifest, built)
    device_only = latency.device_only
    return {
        **manifest.run,
        "target": target.name,
        "backend": f"{built.backend} {built.version}",
        "accuracy_note": "measured when the kit was made, not of this engine",
        "numerics": verdict.numerics,
        "verification": {
            "ran": trial.ran,
            "top1": verdict.top1,
            "agreement": verdict.agreement,
            "failures": verdict.failures,
        },
        "latency_ms": {
            "fp32": None,
            "quantized": _percentiles(latency),
            "device_only": None if device_only is None else _percentiles(device_only),
            "backend": latency.backend,
            "device": latency.device,
        },
        "fusion": layers.pop("fusion"),
        "layer_differences": layers.pop("differences"),
        "size_bytes": {
            "trt_onnx": (kit / manifest.onnx).stat().st_size,
            "engine": built.size_bytes,
        },
        "seconds": {"build": round(built.seconds, 2), "validate": round(trial.seconds, 2)},
        "peak_rss_mb": round(_peak_rss_bytes() / 1e6, 1),
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            built.backend: built.version,
        },
        "kit_versions": manifest.run.get("versions"),
        "gate": {"max_drop": None, "passed": engine is not None},
        "notes": [*notes, *layers["notes"]],
        "command": " ".join(sys.argv),
        "engine": None if engine is None else str(engine),
        "engine_sha256": None if engine is None else file_sha256(built.engine_path),
    }


def report_text(content: Mapping[str, Any]) -> str:
    """Return the same in a few lines."""
    passed, verification = content["gate"]["passed"], content["verification"]
    lines = [f"{content.get('model', '')} · {content['target']} · {content['backend']}"]
    for name, numbers in content["numerics"].items():
        lines.append(f"output {name}: {numbers['snr_db']:.1f} dB, cosine {numbers['cosine']:.5f}")
    if verification["top1"] is not None:
        lines.append(f"same class as the reference: {verification['top1']:.0f} %")
    if verification["agreement"] is not None:
        lines.append(f"agreement of the boxes: {verification['agreement']:.1f} %")
    latency = content["latency_ms"]
    lines.append(f"latency {_in_words(latency['quantized'])}")
    if latency["device_only"] is not None:
        lines.append(f"without copies {_in_words(latency['device_only'])}")
    lines.append(f"measured with {latency['backend']} on {latency['device']}")
    fusion = content["fusion"]
    if fusion is not None:
        lines.append(f"layers in INT8: {fusion['int8_layers']} of {fusion['quantizable_layers']}")
    lines += [
        f"layer {one['layer']}: {one['expected']} expected, {one['found']} found"
        for one in content["layer_differences"]
    ]
    lines += [f"note: {note}" for note in content["notes"]]
    lines += [f"FAILED: {failure}" for failure in verification["failures"]]
    lines.append(f"installed: {content['engine']}" if passed else "REFUSED: nothing is installed")
    return "\n".join(map(visible, lines)) + "\n"


def _layers(manifest: Manifest, built: BuildResult) -> dict[str, Any]:
    """Entries `fusion`, `differences` and `notes`."""
    try:
        kernels = parse_kernels(built.layers)
    except LayerListError as error:
        return {"fusion": None, "differences": [], "notes": [f"layers are unknown: {error}"]}
    found = layer_precisions(manifest.layers, kernels)
    int8_layers = list(found.values()).count("int8")
    fusion = {
        "int8_layers": int8_layers,
        "quantizable_layers": len(found),
        "int8_coverage": round(100 * int8_layers / len(found), 2) if found else 0.0,
        "kernels": len(kernels),
    }
    differences = [
        {"layer": layer, "expected": expected, "found": found[layer]}
        for layer, expected in manifest.layers.items()
        if found[layer] != expected
    ]
    return {"fusion": fusion, "differences": differences, "notes": []}


def _percentiles(latency: Latency) -> dict[str, float]:
    return {key: round(getattr(latency, key), 3) for key in ("p50", "p90", "p99")}


def _in_words(percentiles: Mapping[str, float]) -> str:
    return ", ".join(f"{key} {value:.3f} ms" for key, value in percentiles.items())


def _peak_rss_bytes() -> int:
    kibibytes = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kibibytes
