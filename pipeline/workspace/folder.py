"""One folder per model, calibrator and target; every file in it is whole and says where it is from.

`run.json` in it holds one record per finished stage (`reptrt.pipeline.workspace.run_records`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypeVar

from reptrt.engines.artifacts import WriteError, require_file_or_nothing
from reptrt.engines.file_lock import hold_lock
from reptrt.engines.partial import remove_leftovers
from reptrt.pipeline.recipe import Recipe, slug
from reptrt.pipeline.workspace.records import read_record
from reptrt.pipeline.workspace.run_records import (
    Inputs,
    StageRecord,
    as_json,
    forget_stage,
    read_records,
    sha256_or_none,
)

T = TypeVar("T")

CPU = "cpu"
CPU_ENGINE = "model.cpu.onnx"
COMMANDS = {
    "budget": "engine",
    "channels": "calibrate",
    "concats": "calibrate",
    "cost": "build",
    "placement": "calibrate",
    "sensitivity": "calibrate",
    "end2end": "export",
    "tail": "build",
    "fp32": "export",
    "fp16": "validate",
}
"""Stages that a command of another name walks."""
OBSERVATIONS = "observations.safetensors"
"""In a folder of its own that all runs of a model read: `reptrt.pipeline.observations`."""
ARTIFACTS = {
    "concats": "concats.json",
    "placement": "placement.json",
    "channels": "channels.safetensors",
    "sensitivity": "sensitivity.json",
    "budget": "budget.json",
    "calibration": "calibration.safetensors",
    "scales": "scales.json",
    "fp32_onnx": "model.fp32.onnx",
    "qdq_onnx": "model.qdq.onnx",
    "trt_onnx": "model.trt.onnx",
    "end2end_onnx": "model.end2end.onnx",
    "cut_onnx": "model.cut.onnx",
    "tail_onnx": "model.tail.onnx",
    "engine": "model.engine",
    "fp16_onnx": "model.fp16.onnx",
    "fp16_engine": "model.fp16.engine",
    "fusion": "fusion.json",
    "cost": "cost.json",
    "validation": "validation.json",
    "histograms": "histograms.json",
    "report_json": "report.json",
    "report_html": "report.html",
    "log": "run.log",
}


class WorkspaceError(OSError):
    """The workspace cannot be written, or lacks what an earlier stage makes."""

    exit_code = 2


@dataclass(frozen=True)
class Workspace:
    """Files of one run, in `folder` = `<root>/<model>/<calibrator>-<variant>/<target>`."""

    folder: Path
    concats: Path
    placement: Path
    channels: Path
    sensitivity: Path
    budget: Path
    calibration: Path
    scales: Path
    fp32_onnx: Path
    qdq_onnx: Path
    trt_onnx: Path
    end2end_onnx: Path
    cut_onnx: Path
    tail_onnx: Path
    engine: Path
    fp16_onnx: Path
    fp16_engine: Path
    fusion: Path
    cost: Path
    validation: Path
    histograms: Path
    report_json: Path
    report_html: Path
    log: Path


def run_folder(root: Path, recipe: Recipe, target: str) -> Path:
    """Folder of the run of `recipe` below `root`; `target` is resolved."""
    return root / slug(recipe.model) / f"{recipe.calibrator}-{variant(recipe)}" / target


def variant(recipe: Recipe) -> str:
    """Bits, and what else was asked for that makes another run of the same calibrator: `w8a8-seed1-n64-fp32`."""
    parts = [f"w{recipe.weight_bits}a{recipe.activation_bits}"]
    if recipe.seed:
        parts.append(f"seed{recipe.seed}")
    if recipe.num_samples:
        parts.append(f"n{recipe.num_samples}")
    if recipe.precision:
        parts.append(recipe.precision)
    return "-".join(parts)


def open_workspace(root: Path, recipe: Recipe, target: str) -> Workspace:
    """Make the folder of this run.

    Raises:
        WorkspaceError: it cannot be created or written.
    """
    folder = run_folder(root, recipe, target)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        require_file_or_nothing(folder / ARTIFACTS["log"])  # a planted link is not followed
        (folder / ARTIFACTS["log"]).open("a").close()
    except WriteError:
        raise
    except OSError as error:
        raise WorkspaceError(
            f"{folder}: cannot be written ({error.strerror}); choose another `workspace`"
        ) from None
    files = ARTIFACTS if target != CPU else {**ARTIFACTS, "engine": CPU_ENGINE}
    return Workspace(folder, **{name: folder / file for name, file in files.items()})


@contextmanager
def hold_workspace(workspace: Workspace, waiting: Callable[[], None]) -> Iterator[None]:
    """Keep other processes out of the folder of this run; `waiting` is called if one is in it."""
    with hold_lock(workspace.log, waiting):
        remove_leftovers(workspace.folder)
        _drop_former_sidecars(workspace)
        yield


def require(path: Path, stage: str) -> Path:
    """Return `path`, which `stage` writes.

    Raises:
        WorkspaceError: it is not there yet, the last run of `stage` was stopped, or something else
            has changed it.
    """
    record = read_records(path.parent).get(stage)
    digest = None if record is None else record.artifacts.get(path.name)
    command = COMMANDS.get(stage, stage)
    if digest is None or not path.exists():
        raise WorkspaceError(f"{path}: not made yet; run `reptrt {command} MODEL` first")
    if digest != sha256_or_none(path):
        raise WorkspaceError(
            f"{path}: is not what was written there; run `reptrt {command} MODEL` again"
        )
    return path


def read_artifact(path: Path, stage: str, record: type[T]) -> T:
    """Content of a JSON file that `stage` wrote, as a `record` of `reptrt.engines.report_schema`.

    Raises:
        WorkspaceError: see `require`.
        RecordError: it is no such record.
    """
    return read_record(require(path, stage), record)


def read_optional(path: Path, stage: str, record: type[T]) -> T | None:
    """As `read_artifact`, of a stage that not every run has; None where it wrote nothing.

    Raises:
        WorkspaceError: it wrote something, and that was changed or removed; or see `require`.
        RecordError: it is no such record.
    """
    return read_artifact(path, stage, record) if has_made(path, stage) else None


def has_made(path: Path, stage: str) -> bool:
    """Whether `stage`, which not every run has, is said to have written `path`, or something lies there."""
    return stage in read_records(path.parent) or path.is_symlink() or path.exists()


def require_same(folder: Path, stage: str, inputs: Inputs) -> None:
    """Refuse what `stage` made of other inputs than these.

    Args:
        folder: of the run.
        stage: that made it.
        inputs: those of its inputs that the reader knows too.

    Raises:
        WorkspaceError: an input differs.
    """
    record, command = read_records(folder).get(stage), COMMANDS.get(stage, stage)
    if record is None:
        raise WorkspaceError(f"{folder}: no finished {stage}; run `reptrt {command} MODEL` first")
    different = [
        name for name, value in as_json(inputs).items() if record.inputs.get(name) != value
    ]
    if different:
        raise WorkspaceError(
            f"{folder}: what {stage} left there is of another {', '.join(different)}; run"
            f" `reptrt {command} MODEL` again with these options"
        )


def discard(artifact: Path) -> None:
    """Remove what an earlier run made and this one does not."""
    for name, record in read_records(artifact.parent).items():
        if artifact.name in record.artifacts:
            forget_stage(artifact.parent, name)
    artifact.unlink(missing_ok=True)


def stage_records(workspace: Workspace) -> dict[str, StageRecord]:
    """Records of the finished stages, in the order of the road."""
    records = read_records(workspace.folder)
    road = [getattr(workspace, field.name).name for field in fields(workspace)]

    def place(record: StageRecord) -> int:
        return min((road.index(name) for name in record.artifacts if name in road), default=0)

    return dict(sorted(records.items(), key=lambda item: place(item[1])))


def _drop_former_sidecars(workspace: Workspace) -> None:
    """Remove `<artifact>.json` files of earlier versions, which nothing reads now."""
    for field in fields(workspace):
        path: Path = getattr(workspace, field.name)
        if path != workspace.folder:
            path.with_name(f"{path.name}.json").unlink(missing_ok=True)
