"""Verify an engine against its Q/DQ graph: reference inputs and outputs, and tolerances.

The reference is the graph in ONNX Runtime without optimizations. An engine that is right still differs
from it, since fused kernels add in another order and a sum on the border of two codes may fall either
way. How much is allowed is measured on the network itself: no more than quantization changed it.

- Each output's SNR against the reference is at least that of the reference against FP32. On other integer
  kernels, ONNX Runtime's for CPUs, MobileOne-S0, RepVGG-A0, DeiT-Tiny and the demo detector have at least
  7 dB more. The bound is kept within `SNR_FLOOR` and `SNR_CEILING`: 0 dB is what an output of zeros has,
  and above the ceiling it would forbid FP16.
- A classifier gives the same class where the two best logits of the reference are further apart than
  three standard deviations of the quantization noise of their difference.
- A detector's boxes agree as well as the reference's do with FP32's, or to `AGREEMENT_CEILING`: on few
  images a single box at the threshold is worth some points.
"""

from __future__ import annotations

import zipfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from reptrt.engines.foreign.border import reading
from reptrt.engines.foreign.limits import MAX_REFERENCE_BYTES
from reptrt.engines.kit.manifest import Manifest, Tolerances
from reptrt.engines.outputs.box_agreement import detection_agreement
from reptrt.engines.outputs.detection import NMS_OUTPUTS, Detections, detect, read_nms_outputs
from reptrt.engines.outputs.snr import SignalNoise
from reptrt.engines.outputs.suppression import DEPLOYMENT, Suppression
from reptrt.engines.report_schema import Numerics, OutputNumerics
from reptrt.engines.runtime.runners import Runner
from reptrt.engines.tensor_spec import Tensor

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]

SNR_FLOOR = 3.0
SNR_CEILING = 40.0
AGREEMENT_CEILING = 90.0
_DEVIATIONS = 3.0
_INPUT, _OUTPUT = "input:", "output:"


class ReferenceFileError(ValueError):
    """The file holds no reference inputs and outputs."""

    exit_code = 2


@dataclass(frozen=True)
class References:
    """Inputs and outputs of the Q/DQ graph by name; the first dimension counts images."""

    inputs: Arrays
    outputs: Arrays


@dataclass(frozen=True)
class EngineCheck:
    """How close an engine is to the references.

    Attributes:
        numerics: by output.
        top1: percent of the images with a clear class that get it; None where there are none.
        agreement: mean F1 of the boxes in percent; None where the network is no detector.
        failures: one line for each tolerance that is missed.
    """

    numerics: Numerics
    top1: float | None
    agreement: float | None
    failures: tuple[str, ...]


def write_references(references: References, path: Path) -> None:
    """Write an .npz file; the same references give the same bytes."""
    arrays = {f"{_INPUT}{name}": value for name, value in references.inputs.items()}
    arrays |= {f"{_OUTPUT}{name}": value for name, value in references.outputs.items()}
    np.savez(path, **arrays)  # type: ignore[arg-type]  # the stubs mix up **kwds


def read_references(path: Path, manifest: Manifest) -> References:
    """Read what `write_references` wrote for the tensors of `manifest`; nothing is unpickled.

    Raises:
        ReferenceFileError: the file is no .npz, or lacks a tensor.
    """
    problem = "no reference inputs and outputs"
    with reading(path, ReferenceFileError, problem):
        _require_small(path)
        with np.load(path, allow_pickle=False) as arrays:
            inputs = {tensor.name: arrays[f"{_INPUT}{tensor.name}"] for tensor in manifest.inputs}
            outputs = {name: arrays[f"{_OUTPUT}{name}"] for name in _names(manifest)}
        arrays_read = [*inputs.values(), *outputs.values()]
        if not all(array.ndim and array.size for array in arrays_read):
            raise ReferenceFileError(f"{path}: {problem}: it holds no images")
        if not all(np.isfinite(array).all() for array in arrays_read):
            raise ReferenceFileError(f"{path}: {problem}: it holds NaN or infinity")
        counts = _count_samples(inputs, outputs, manifest)
        if len(counts) > 1 or len(manifest.tolerances.top1) not in (0, *counts):
            raise ReferenceFileError(f"{path}: {problem}: they differ in their number of images")
    return References(inputs, outputs)


def _count_samples(inputs: Arrays, outputs: Arrays, manifest: Manifest) -> set[int]:
    shared = shared_inputs(manifest.inputs, manifest.build.batch)
    counts = {len(value) for name, value in inputs.items() if name not in shared}
    axes = sample_axes(manifest.outputs)
    return counts | {outputs[name].shape[axis] for name, axis in axes.items()} if counts else {1}


def _require_small(path: Path) -> None:
    """Refuse an archive that unpacks to more than it is, or to too much."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    total = sum(entry.file_size for entry in entries)
    packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    if packed or total > min(MAX_REFERENCE_BYTES, path.stat().st_size):
        raise ReferenceFileError(f"{path}: unpacks to more than it is, or to more than 1 GiB")


def run_in_batches(
    runner: Runner,
    inputs: Arrays,
    batch: int,
    shared: Collection[str] = (),
    axes: Mapping[str, int] | None = None,
) -> dict[str, Array]:
    """Run all of `inputs`, `batch` samples at once; the last batch is filled up with its last sample.

    Args:
        runner: loaded.
        inputs: by name.
        batch: samples at once.
        shared: inputs that all samples of a batch share; where all are, there is one sample.
        axes: of an output, where its samples are counted; 0 where it is not named.
    """
    own = [len(value) for name, value in inputs.items() if name not in shared]
    if not own:
        return runner.infer(inputs)
    count, at = min(own), axes or {}
    parts: list[dict[str, Array]] = []
    for start in range(0, count, batch):
        outputs = runner.infer(take_batch(inputs, batch, start, shared))
        rows = range(min(batch, count - start))
        parts.append(
            {
                name: value if len(rows) == batch else value.take(rows, at.get(name, 0))
                for name, value in outputs.items()
            }
        )
    return {
        name: np.concatenate([part[name] for part in parts], at.get(name, 0)) for name in parts[0]
    }


def take_batch(
    inputs: Arrays, batch: int, start: int = 0, shared: Collection[str] = ()
) -> dict[str, Array]:
    """Return `batch` samples from `start` on, filled up with the last one where they end."""
    return {
        name: value
        if name in shared
        else value[np.minimum(np.arange(start, start + batch), len(value) - 1)]
        for name, value in inputs.items()
    }


def shared_inputs(inputs: Sequence[Tensor], batch: tuple[int, int, int]) -> set[str]:
    """Names of the inputs that do not count samples, of an engine for `batch`, as `BuildOptions` has it."""
    low, _, high = batch
    is_open = any(tensor.has_dynamic_batch for tensor in inputs)
    fixed = low if low == high and not is_open else -1
    return {tensor.name for tensor in inputs if tensor.shape[:1] != (fixed,)}


def sample_axes(outputs: Sequence[Tensor]) -> dict[str, int]:
    """Axis of each output that counts samples: the first one that is open, else the first."""
    return {one.name: one.shape.index(-1) if -1 in one.shape else 0 for one in outputs}


def derive_tolerances(
    floating: Arrays,
    reference: Arrays,
    task: str,
    strides: Sequence[int],
    suppression: Suppression = DEPLOYMENT,
) -> Tolerances:
    """Derive tolerances from the differences between the Q/DQ graph and FP32.

    Args:
        floating: outputs of the FP32 network in their order, without NMS.
        reference: outputs of the Q/DQ graph on the same images; with NMS for an end-to-end model, whose
            boxes alone are compared.
        task: of the network.
        strides: of a detector's maps.
        suppression: of an end-to-end model.
    """
    shared = [name for name in floating if name in reference]
    snr = {name: _noise(floating[name], reference[name]).snr_db for name in shared}
    top1: tuple[int | None, ...] = ()
    agreement = None
    if task == "classification":
        top1 = _clear_classes(floating[shared[0]], reference[shared[0]])
    if task == "detection":
        wanted, found = (
            _find_boxes(one, list(floating), strides, suppression) for one in (floating, reference)
        )
        agreement = round(min(detection_agreement(wanted, found), AGREEMENT_CEILING), 2)
    bounds = {name: round(min(max(db, SNR_FLOOR), SNR_CEILING), 2) for name, db in snr.items()}
    return Tolerances(bounds, top1, agreement)


def compare(reference: Arrays, outputs: Sequence[Arrays], manifest: Manifest) -> EngineCheck:
    """Compare an engine's outputs on the reference inputs, one set per batch size, with the reference.

    Raises:
        ReferenceFileError: the shapes differ.
    """
    for one in outputs:
        _require_shapes(reference, one)
    tolerances = manifest.tolerances
    noise = {name: SignalNoise() for name in tolerances.snr_db}
    for name, found in noise.items():
        for one in outputs:
            found.update(reference[name], one[name])
    failures = [
        f"output {name}: {noise[name].snr_db:.1f} dB, at least {least:.1f} dB wanted"
        for name, least in tolerances.snr_db.items()
        if not noise[name].snr_db >= least  # NaN too
    ]
    top1 = agreement = None
    if clear := [(row, label) for row, label in enumerate(tolerances.top1) if label is not None]:
        logits = [one[manifest.outputs[0].name] for one in outputs]
        hits = [int(one[row].argmax()) == label for one in logits for row, label in clear]
        top1 = 100 * sum(hits) / len(hits)
        if not all(hits):
            failures.append(f"{hits.count(False)} of {len(hits)} images get another class")
    if tolerances.agreement is not None:
        names = _names(manifest)
        wanted = _find_boxes(reference, names, manifest.strides)
        agreement = min(
            detection_agreement(wanted, _find_boxes(one, names, manifest.strides))
            for one in outputs
        )
        if not agreement >= tolerances.agreement:
            failures.append(
                f"boxes agree to {agreement:.1f} %, at least {tolerances.agreement:.1f} % wanted"
            )
    numerics = {name: OutputNumerics(one.snr_db, one.cosine) for name, one in noise.items()}
    return EngineCheck(numerics, top1, agreement, tuple(failures))


def join_checks(checks: Mapping[str, EngineCheck]) -> EngineCheck:
    """Those of several sizes, by their labels, as one; the usual size has none."""
    numerics = {
        f"{name} {label}".strip(): one
        for label, check in checks.items()
        for name, one in (check.numerics or {}).items()
    }
    failures = tuple(
        f"{label}: {line}" if label else line
        for label, check in checks.items()
        for line in check.failures
    )
    top1 = [check.top1 for check in checks.values() if check.top1 is not None]
    boxes = [check.agreement for check in checks.values() if check.agreement is not None]
    return EngineCheck(numerics, min(top1, default=None), min(boxes, default=None), failures)


def _find_boxes(
    outputs: Arrays,
    maps: Sequence[str],
    strides: Sequence[int],
    suppression: Suppression = DEPLOYMENT,
) -> list[Detections]:
    """Boxes of each image: those of an end-to-end model, else those in the maps."""
    if NMS_OUTPUTS[0] in outputs:
        return read_nms_outputs(outputs)
    return detect([outputs[name] for name in maps], strides, suppression)


def _require_shapes(reference: Arrays, outputs: Arrays) -> None:
    for name, wanted in reference.items():
        if name not in outputs or outputs[name].shape != wanted.shape:
            shape = outputs[name].shape if name in outputs else "missing"
            raise ReferenceFileError(
                f"output {name} is {shape}, and {wanted.shape} in the references: they are of another"
                " model; make the kit again"
            )


def _names(manifest: Manifest) -> list[str]:
    return [tensor.name for tensor in manifest.outputs]


def _clear_classes(floating: Array, reference: Array) -> tuple[int | None, ...]:
    noise = float(np.sqrt(np.mean((reference - floating) ** 2)))
    second, first = np.sort(reference, axis=1)[:, -2:].T
    is_clear = first - second > _DEVIATIONS * np.sqrt(2) * noise
    labels = reference.argmax(axis=1)
    return tuple(int(one) if clear else None for one, clear in zip(labels, is_clear, strict=True))


def _noise(reference: Array, test: Array) -> SignalNoise:
    noise = SignalNoise()
    noise.update(reference, test)
    return noise
