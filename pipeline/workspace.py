"""One folder per model, calibrator and target; every file in it is whole and says where it is from.

`run.json` in it holds one record per finished stage: hashes of everything the stage read and of what it
wrote, seconds, versions, seed and command. A stage whose inputs are what the record says, and whose
artifacts are still what it wrote, is skipped. A shared stage also takes such artifacts from another run
of the model: calibration does not depend on the target.
"""

from __future__ import annotations

import hashlib
import json
import logging
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from reptrt.engines.artifacts import file_sha256, replace_when_done, write_json
from reptrt.engines.file_lock import hold_lock
from reptrt.pipeline.recipe import Recipe, slug
from reptrt.pipeline.records import read_record

T = TypeVar("T")
logger = logging.getLogger(__name__)

PACKAGES = (
    "reptrt", "torch", "torchvision", "timm", "onnx", "onnxruntime", "onnxscript", "onnx-graphsurgeon",
    "onnx2torch", "polygraphy", "tensorrt-rtx", "tensorrt", "numpy", "pillow", "safetensors",
)  # fmt: skip
CPU = "cpu"
CPU_ENGINE = "model.cpu.onnx"
RECORDS = "run.json"
COMMANDS = {"sensitivity": "calibrate", "end2end": "export", "fp16": "validate"}
"""Stages that a command of another name walks."""
ARTIFACTS = {
    "sensitivity": "sensitivity.json",
    "calibration": "calibration.safetensors",
    "scales": "scales.json",
    "fp32_onnx": "model.fp32.onnx",
    "qdq_onnx": "model.qdq.onnx",
    "trt_onnx": "model.trt.onnx",
    "end2end_onnx": "model.end2end.onnx",
    "engine": "model.engine",
    "fp16_onnx": "model.fp16.onnx",
    "fp16_engine": "model.fp16.engine",
    "fusion": "fusion.json",
    "validation": "validation.json",
    "report_json": "report.json",
    "report_html": "report.html",
    "log": "run.log",
}


class WorkspaceError(OSError):
    """The workspace cannot be written, or lacks what an earlier stage makes."""

    exit_code = 2


class StageRecord(BaseModel):
    """What a finished stage left in `run.json`.

    Attributes:
        inputs: everything that the result depends on; files by their hash.
        artifacts: file name -> SHA-256.
        seed: of the run.
        seconds: that the stage took.
        peak_rss_mb: most memory of the process until then, in 10^6 bytes.
        versions: of the packages that decide a result.
        command: what the user typed.
        copied_from: folder of the run that lent the artifacts; None where they were made here.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    inputs: dict[str, Any]
    artifacts: dict[str, str]
    seed: int
    seconds: float
    peak_rss_mb: float
    versions: dict[str, str]
    command: str
    copied_from: str | None = None


class RunRecords(BaseModel):
    """Content of `run.json`: records by stage, in the order in which the stages finished."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    stages: dict[str, StageRecord] = {}


@dataclass(frozen=True)
class Workspace:
    """Files of one run, in `folder` = `<root>/<model>/<calibrator>-w8a8/<target>`."""

    folder: Path
    sensitivity: Path
    calibration: Path
    scales: Path
    fp32_onnx: Path
    qdq_onnx: Path
    trt_onnx: Path
    end2end_onnx: Path
    engine: Path
    fp16_onnx: Path
    fp16_engine: Path
    fusion: Path
    validation: Path
    report_json: Path
    report_html: Path
    log: Path


@dataclass(frozen=True)
class Stage:
    """One step of the road.

    Attributes:
        name: `sensitivity`, `calibrate`, `export`, `build`, `fp16`, `validate` or `report`.
        command: what the user typed.
        seed: of the run.
        inputs: everything that the result depends on; JSON values, files by their hash.
        artifacts: files that the stage writes, all in the folder of the run.
        shared: other runs of the model may lend theirs, in `<root>/<model>/<calibrator>/<target>`.
    """

    name: str
    command: str
    seed: int
    inputs: Mapping[str, Any]
    artifacts: Sequence[Path]
    shared: bool = False

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        return self.artifacts[0].parent

    def run(self, work: Callable[[], None]) -> None:
        """Call `work`, which writes the artifacts, unless they are fresh; then record it."""
        if self._fresh_record(self.folder) is not None:
            logger.info("%s: fresh, skipped", self.name)
            return
        _forget(self.folder, self.name)  # a killed run must not look finished
        if self.shared and self._borrow():
            return
        logger.info("%s: started", self.name)
        started = time.monotonic()
        work()
        seconds = round(time.monotonic() - started, 2)
        _record(self.folder, self.name, self._describe(seconds))
        logger.info("%s: finished in %.1f s", self.name, seconds)

    @contextmanager
    def unfinished(self) -> Iterator[Path]:
        """Folder, perhaps of an earlier run that was stopped, for work on these very inputs.

        It goes when the work is done, and with it those that other inputs left.
        """
        parent = self.folder / f"{self.name}.unfinished"
        facts = json.dumps([dict(self.inputs), installed_versions()], sort_keys=True)
        yield parent / hashlib.sha256(facts.encode()).hexdigest()[:16]
        shutil.rmtree(parent, ignore_errors=True)

    def _describe(self, seconds: float) -> StageRecord:
        return StageRecord(
            inputs=_as_json(self.inputs),
            artifacts={artifact.name: file_sha256(artifact) for artifact in self.artifacts},
            seed=self.seed,
            seconds=seconds,
            peak_rss_mb=round(peak_rss_bytes() / 1e6, 1),
            versions=installed_versions(),
            command=self.command,
        )

    def _borrow(self) -> bool:
        """Copy what another run of the model made of the same inputs; False where there is none."""
        for folder in sorted(self.folder.parents[1].glob("*/*")):
            record = self._fresh_record(folder)
            if record is not None and self._copy(folder, record):
                logger.info("%s: same inputs as in %s, copied from there", self.name, folder)
                return True
        return False

    def _copy(self, folder: Path, record: StageRecord) -> bool:
        """Copy artifacts, then note it; False if another process replaced an artifact meanwhile."""
        for artifact in self.artifacts:
            with replace_when_done(artifact) as temporary:
                shutil.copyfile(folder / artifact.name, temporary)
            if file_sha256(artifact) != record.artifacts[artifact.name]:
                return False
        lent = record.model_copy(update={"copied_from": str(folder)})
        _record(self.folder, self.name, lent)
        return True

    def _fresh_record(self, folder: Path) -> StageRecord | None:
        """Record of this stage in `folder`, if its artifacts are what this stage would make."""
        record = read_records(folder).get(self.name)
        is_fresh = (
            record is not None
            and record.inputs == _as_json(self.inputs)
            and record.versions == installed_versions()
            and record.artifacts.keys() == {artifact.name for artifact in self.artifacts}
            and all(
                digest == _sha256_or_none(folder / name)
                for name, digest in record.artifacts.items()
            )
        )
        return record if is_fresh else None


def open_workspace(root: Path, recipe: Recipe, target: str) -> Workspace:
    """Make the folder of this run.

    Raises:
        WorkspaceError: it cannot be created or written.
    """
    bits = f"w{recipe.weight_bits}a{recipe.activation_bits}"
    folder = root / slug(recipe.model) / f"{recipe.calibrator}-{bits}" / target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ARTIFACTS["log"]).open("a").close()
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
    if digest != _sha256_or_none(path):
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


def made_from(folder: Path, stage: str, source: str) -> str | None:
    """Hash of the input `source` of a finished stage in `folder`; None where there is none."""
    record = read_records(folder).get(stage)
    found = None if record is None else record.inputs.get(source)
    return found if isinstance(found, str) else None


def require_same(folder: Path, stage: str, inputs: Mapping[str, Any]) -> None:
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
        name for name, value in _as_json(inputs).items() if record.inputs.get(name) != value
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
            _forget(artifact.parent, name)
    artifact.unlink(missing_ok=True)


def read_records(folder: Path) -> dict[str, StageRecord]:
    """Records of the finished stages by name; none where `run.json` is missing or not ours."""
    try:
        text = (folder / RECORDS).read_text(encoding="utf-8")
        return RunRecords.model_validate_json(text).stages
    except (OSError, ValidationError, UnicodeDecodeError):
        return {}


def stage_records(workspace: Workspace) -> dict[str, StageRecord]:
    """Records of the finished stages, in the order of the road."""
    records = read_records(workspace.folder)
    road = [getattr(workspace, field.name).name for field in fields(workspace)]

    def place(record: StageRecord) -> int:
        return min((road.index(name) for name in record.artifacts if name in road), default=0)

    return dict(sorted(records.items(), key=lambda item: place(item[1])))


def installed_versions() -> dict[str, str]:
    """Versions of the packages that decide a result."""
    found: dict[str, str] = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def peak_rss_bytes() -> int:
    """Most memory that this process has held so far."""
    kibibytes = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kibibytes


def _record(folder: Path, stage: str, record: StageRecord) -> None:
    others = {name: one for name, one in read_records(folder).items() if name != stage}
    _write_records(folder, {**others, stage: record})


def _forget(folder: Path, stage: str) -> None:
    records = read_records(folder)
    if records.pop(stage, None) is not None:
        _write_records(folder, records)


def _write_records(folder: Path, records: Mapping[str, StageRecord]) -> None:
    content = RunRecords(stages=dict(records)).model_dump(mode="json", exclude_none=True)
    write_json(content, folder / RECORDS)


def _drop_former_sidecars(workspace: Workspace) -> None:
    """Remove `<artifact>.json` files of earlier versions, which nothing reads now."""
    for field in fields(workspace):
        path: Path = getattr(workspace, field.name)
        if path != workspace.folder:
            path.with_name(f"{path.name}.json").unlink(missing_ok=True)


def _as_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as `run.json` gives them back."""
    loaded: dict[str, Any] = json.loads(json.dumps(dict(values)))
    return loaded


def _sha256_or_none(path: Path) -> str | None:
    try:
        return file_sha256(path)
    except OSError:
        return None
