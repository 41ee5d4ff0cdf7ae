"""manifest.json: the files of a build kit, how to build its engine, and what the engine must reach."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from reptrt.engines.artifacts import file_sha256
from reptrt.engines.build.builder import BuildOptions
from reptrt.engines.foreign.border import read_json, reading
from reptrt.engines.foreign.limits import MAX_SIDECAR_BYTES
from reptrt.engines.foreign.text import one_line, path_part, visible
from reptrt.engines.report_schema import Accuracy, Check, MetricPair, RunFacts, Verdict
from reptrt.engines.tensor_spec import Tensor

MANIFEST_FILE = "manifest.json"
FORMAT = 2
_INTERVALS = ("fp32_interval", "drop_interval")
_MAX_BATCH = 1 << 16
_MAX_SIDE = (1 << 31) - 1
_MAX_WORKSPACE_BYTES = 1 << 48
_LEVELS = range(6)  # of TensorRT's optimization


class ManifestError(ValueError):
    """The kit is incomplete, was changed, or is of another version of this program."""

    exit_code = 2


@dataclass(frozen=True)
class Tolerances:
    """What an engine must reach on the reference inputs; see `reptrt.engines.kit.verification`.

    Attributes:
        snr_db: least signal-to-noise ratio in dB against the reference, by output.
        top1: class of each image, None where the two best are too close; empty where the
            network is no classifier.
        agreement: least mean F1 of the boxes in percent; None where the network is no detector.
    """

    snr_db: Mapping[str, float]
    top1: tuple[int | None, ...] = ()
    agreement: float | None = None


@dataclass(frozen=True)
class SizedReferences:
    """Reference inputs and outputs of another size than the usual one.

    Attributes:
        label: `at 320x320`.
        references: file in the kit.
        tolerances: of the verification in that size.
    """

    label: str
    references: str
    tolerances: Tolerances


@dataclass(frozen=True)
class Manifest:
    """Content of manifest.json.

    Attributes:
        name: file name of the engine, without its suffix.
        model: MODEL that the user gave.
        task: `classification`, `detection` or `generic`.
        target: key of `reptrt.engines.target_table.TARGETS`.
        onnx: file in the kit that the engine is built from.
        references: file in the kit with reference inputs and outputs.
        build: how the engine is built.
        inputs: of the ONNX file.
        outputs: of the ONNX file.
        classes: names in the order of the outputs; None when nobody named them.
        strides: of a detector's maps, in pixels per cell.
        preprocess: how an image becomes the input; the fields of `reptrt.models.spec.Preprocess`.
        layers: whether each weighted layer is expected in `int8` or `float`.
        layers_source: what says so.
        tolerances: of the verification.
        run: what was known of the run when the kit was made.
        files: SHA-256 of every other file of the kit, by name.
        other_sizes: the smallest and the largest size of images whose size stays open.
    """

    name: str
    model: str
    task: str
    target: str
    onnx: str
    references: str
    build: BuildOptions
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    classes: tuple[str, ...] | None
    strides: tuple[int, ...]
    preprocess: Mapping[str, Any]
    layers: Mapping[str, str]
    layers_source: str
    tolerances: Tolerances
    run: RunFacts
    files: Mapping[str, str]
    other_sizes: tuple[SizedReferences, ...] = ()


def manifest_text(manifest: Manifest) -> str:
    """Return the manifest as indented JSON."""
    return json.dumps({"format": FORMAT, **asdict(manifest)}, indent=2, allow_nan=False) + "\n"


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of the unpacked kit in `folder`.

    Raises:
        ManifestError: it is missing, damaged, or of another version.
    """
    path = folder / MANIFEST_FILE
    if path.is_symlink() or not path.is_file():
        raise ManifestError(
            f"{path}: no such file; give `kit` the folder that the kit was unpacked to"
        )
    values = read_json(path, MAX_SIDECAR_BYTES, ManifestError)
    if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
        raise ManifestError(f"{path}: not a manifest of format {FORMAT}; make the kit again")
    with reading(path, ManifestError, "damaged; unpack the kit again"):
        manifest = _from_json(values)
        require_types(manifest)
        return manifest


def check_files(folder: Path, manifest: Manifest) -> None:
    """Compare every file of the kit with its hash.

    Raises:
        ManifestError: one is missing, differs, or is no plain file of this folder.
    """
    others = (one.references for one in manifest.other_sizes)
    for name in (manifest.onnx, manifest.references, *others):
        if name not in manifest.files:
            raise ManifestError(f"{folder / MANIFEST_FILE}: lists no hash of {one_line(name)!r}")
    for name in (manifest.name, *manifest.files):
        if path_part(name) != name or (folder / name).is_symlink():
            raise ManifestError(
                f"{folder / visible(name)}: a kit holds plain files only; do not use it"
            )
    for name, digest in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise ManifestError(f"{path}: missing; unpack the kit again")
        if file_sha256(path) != digest:
            raise ManifestError(f"{path}: differs from the manifest; unpack the kit again")


def require_types(manifest: Manifest) -> None:
    """Check what a file of others says, before anything relies on it.

    Raises:
        ManifestError: a field has another type, or the tolerances bound nothing.
    """
    texts = (
        *(manifest.name, manifest.model, manifest.task, manifest.target, manifest.onnx),
        *(manifest.references, manifest.layers_source, *(manifest.classes or ())),
        *(
            text
            for tensor in (*manifest.inputs, *manifest.outputs)
            for text in (tensor.name, tensor.dtype)
        ),
        *(*manifest.layers, *manifest.layers.values()),
        *(text for one in manifest.other_sizes for text in (one.label, one.references)),
    )
    sizes = [side for tensor in (*manifest.inputs, *manifest.outputs) for side in tensor.shape]
    ranges = [side for ends in manifest.build.shapes.values() for end in ends for side in end]
    numbers = (*sizes, *manifest.build.batch, *manifest.strides, *ranges)
    if not all(isinstance(text, str) for text in texts):
        raise ManifestError("a name in it is no text")
    if not all(type(number) is int for number in numbers):
        raise ManifestError("a size in it is no whole number")
    low, usual, high = manifest.build.batch
    if not 1 <= low <= usual <= high <= _MAX_BATCH:
        raise ManifestError(f"its batch sizes are {one_line(manifest.build.batch)}")
    if (
        min(sizes, default=1) < -1
        or max(sizes, default=1) > _MAX_SIDE
        or min(manifest.strides, default=1) < 1
    ):
        raise ManifestError("a size in it is none that a tensor can have")
    _require_build_options(manifest.build)
    if not isinstance(manifest.preprocess, Mapping) or not isinstance(manifest.run.model, str):
        raise ManifestError("'run' names no model, or 'preprocess' is no object")
    if not manifest.inputs or not manifest.outputs:
        raise ManifestError("it has no input, or no output")
    others = (one.tolerances for one in manifest.other_sizes)
    for tolerances in (manifest.tolerances, *others):
        _require_bounds(tolerances, {tensor.name for tensor in manifest.outputs})


def _require_build_options(options: BuildOptions) -> None:
    """TensorRT's bindings raise what they like on other types."""
    limit, level = options.workspace_bytes, options.optimization_level
    flags = (options.version_compatible, options.hardware_compatible)
    is_legal = (
        (limit is None or (type(limit) is int and 0 < limit < _MAX_WORKSPACE_BYTES))
        and (level is None or (type(level) is int and level in _LEVELS))
        and all(type(flag) is bool for flag in flags)
    )
    if not is_legal:
        raise ManifestError("its options for the build are none that TensorRT has")


def _require_bounds(tolerances: Tolerances, outputs: set[str]) -> None:
    """An engine must have something to fail at: bounds that an output of zeros does not reach."""
    decibels, agreement = tolerances.snr_db, tolerances.agreement
    if not decibels and agreement is None:
        raise ManifestError("its tolerances bound nothing, so that any engine would pass")
    if not decibels.keys() <= outputs:
        raise ManifestError("its tolerances are of outputs that the model does not have")
    if not all(math.isfinite(bound) and bound > 0 for bound in decibels.values()):
        raise ManifestError("a tolerance is no number of dB above 0, so that any engine would pass")
    if agreement is not None and not (
        isinstance(agreement, int | float) and math.isfinite(agreement) and 0 < agreement <= 100
    ):
        raise ManifestError("the tolerance of its boxes is no percentage above 0")
    if not all(label is None or (type(label) is int and label >= 0) for label in tolerances.top1):
        raise ManifestError("a class in its tolerances is no whole number")


def _from_json(values: Mapping[str, Any]) -> Manifest:
    values = {"other_sizes": (), **values}
    known = {field.name: values[field.name] for field in fields(Manifest)}
    known["inputs"], known["outputs"] = map(_tensors, (values["inputs"], values["outputs"]))
    known["build"] = _build_options(values["build"])
    known["strides"] = tuple(values["strides"])
    known["classes"] = None if values["classes"] is None else tuple(values["classes"])
    known["tolerances"] = _tolerances(values["tolerances"])
    known["other_sizes"] = tuple(
        SizedReferences(one["label"], one["references"], _tolerances(one["tolerances"]))
        for one in values["other_sizes"]
    )
    known["run"] = _facts(values["run"])
    known["files"] = {str(name): str(digest) for name, digest in values["files"].items()}
    return Manifest(**known)


def _tolerances(values: Mapping[str, Any]) -> Tolerances:
    bounds = {str(name): float(least) for name, least in values["snr_db"].items()}
    return Tolerances(bounds, tuple(values["top1"]), values["agreement"])


def _build_options(values: Mapping[str, Any]) -> BuildOptions:
    """What the kit's maker chose; where timings are kept and for which GPU is the device's own."""
    return BuildOptions(
        batch=tuple(values["batch"]),
        shapes={
            str(name): (tuple(low), tuple(usual), tuple(high))
            for name, (low, usual, high) in values.get("shapes", {}).items()
        },
        workspace_bytes=values["workspace_bytes"],
        optimization_level=values["optimization_level"],
        version_compatible=values["version_compatible"],
        hardware_compatible=values["hardware_compatible"],
    )


def _facts(values: Mapping[str, Any]) -> RunFacts:
    """What `asdict` made of a record; an entry that it does not have is a TypeError."""
    accuracy = values["accuracy"]
    if accuracy is not None:
        extra = {name: MetricPair(**pair) for name, pair in (accuracy["extra"] or {}).items()}
        ends = {key: accuracy[key] and tuple(accuracy[key]) for key in _INTERVALS}
        accuracy = Accuracy(**{**accuracy, **ends, "extra": extra or None})
    verdict = values["verdict"]
    checks = tuple(Check(**check) for check in verdict["checks"])
    verdict = Verdict(**{**verdict, "checks": checks})
    return RunFacts(**{**values, "accuracy": accuracy, "verdict": verdict})


def _tensors(rows: Sequence[Mapping[str, Any]]) -> tuple[Tensor, ...]:
    return tuple(Tensor(row["name"], row["dtype"], tuple(row["shape"])) for row in rows)
