"""One folder per model, calibrator and target; every file in it is whole and says where it is from.

Beside each artifact lies a sidecar, `<artifact>.json`: hashes of everything its stage read, the
artifact's own hash, seconds, versions, seed and command. A stage whose inputs are what the sidecars
say, and whose artifacts are still what it wrote, is skipped. A shared stage also takes such artifacts
from another run of the model: calibration does not depend on the target.
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
from typing import Any

from reptrt.engines.artifacts import file_sha256, replace_when_done, write_json
from reptrt.engines.file_lock import hold_lock
from reptrt.pipeline.recipe import Recipe, slug

logger = logging.getLogger(__name__)

PACKAGES = (
    "reptrt", "torch", "timm", "onnx", "onnxruntime", "onnxscript", "onnx-graphsurgeon", "onnx2torch",
    "polygraphy", "tensorrt-rtx", "tensorrt", "numpy",
)  # fmt: skip
CPU = "cpu"
CPU_ENGINE = "model.cpu.onnx"
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
    """One step of the road, as the sidecars tell it.

    Attributes:
        name: `sensitivity`, `calibrate`, `export`, `build`, `fp16`, `validate` or `report`.
        command: what the user typed.
        seed: of the run.
        inputs: everything that the result depends on; JSON values, files by their hash.
        artifacts: files that the stage writes.
        shared: other runs of the model may lend theirs, in `<root>/<model>/<calibrator>/<target>`.
    """

    name: str
    command: str
    seed: int
    inputs: Mapping[str, Any]
    artifacts: Sequence[Path]
    shared: bool = False

    def run(self, work: Callable[[], None]) -> None:
        """Call `work`, which writes the artifacts, unless they are fresh; then write sidecars."""
        if self._is_fresh():
            logger.info("%s: fresh, skipped", self.name)
            return
        for artifact in self.artifacts:  # a killed run must not look finished
            _sidecar(artifact).unlink(missing_ok=True)
        if self.shared and self._borrow():
            return
        logger.info("%s: started", self.name)
        started = time.monotonic()
        work()
        seconds = round(time.monotonic() - started, 2)
        for artifact in self.artifacts:
            write_json(self._record(artifact, seconds), _sidecar(artifact))
        logger.info("%s: finished in %.1f s", self.name, seconds)

    @contextmanager
    def unfinished(self) -> Iterator[Path]:
        """Folder, perhaps of an earlier run that was stopped, for work on these very inputs.

        It goes when the work is done, and with it those that other inputs left.
        """
        parent = self.artifacts[0].with_name(f"{self.name}.unfinished")
        facts = json.dumps([dict(self.inputs), installed_versions()], sort_keys=True)
        yield parent / hashlib.sha256(facts.encode()).hexdigest()[:16]
        shutil.rmtree(parent, ignore_errors=True)

    def _record(self, artifact: Path, seconds: float) -> dict[str, Any]:
        return {
            "artifact": artifact.name,
            "sha256": file_sha256(artifact),
            "stage": self.name,
            "inputs": dict(self.inputs),
            "seed": self.seed,
            "seconds": seconds,
            "peak_rss_mb": round(peak_rss_bytes() / 1e6, 1),
            "versions": installed_versions(),
            "command": self.command,
        }

    def _borrow(self) -> bool:
        """Copy what another run of the model made of the same inputs; False where there is none."""
        for folder in sorted(self.artifacts[0].parents[2].glob("*/*")):
            lent = [folder / artifact.name for artifact in self.artifacts]
            records = list(filter(None, map(self._fresh_record, lent)))
            if len(records) == len(lent) and self._copy(lent, records):
                logger.info("%s: same inputs as in %s, copied from there", self.name, folder)
                return True
        return False

    def _copy(self, lent: Sequence[Path], records: Sequence[Mapping[str, Any]]) -> bool:
        """Copy artifacts, then sidecars; False if another process replaced an artifact meanwhile."""
        for source, record, artifact in zip(lent, records, self.artifacts, strict=True):
            with replace_when_done(artifact) as temporary:
                shutil.copyfile(source, temporary)
            if file_sha256(artifact) != record["sha256"]:
                return False
        for source, record, artifact in zip(lent, records, self.artifacts, strict=True):
            write_json({**record, "copied_from": source}, _sidecar(artifact))
        return True

    def _is_fresh(self) -> bool:
        return all(map(self._fresh_record, self.artifacts))

    def _fresh_record(self, artifact: Path) -> dict[str, Any] | None:
        """Sidecar of an artifact that is what this stage would make; None for any other."""
        record = _read_sidecar(artifact)
        is_fresh = (
            record is not None
            and record.get("inputs") == json.loads(json.dumps(dict(self.inputs)))
            and record.get("versions") == installed_versions()
            and record.get("sha256") == _sha256_or_none(artifact)
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
        yield


def require(path: Path, stage: str) -> Path:
    """Return `path`, which `stage` writes.

    Raises:
        WorkspaceError: it is not there yet, or the last run of `stage` was stopped.
    """
    if not path.exists() or _read_sidecar(path) is None:
        raise WorkspaceError(f"{path}: not made yet; run `reptrt {stage} MODEL` first")
    return path


def read_artifact(path: Path, stage: str) -> dict[str, Any]:
    """Content of a JSON file that `stage` wrote.

    Raises:
        WorkspaceError: it is not there yet, or something else has changed it.
    """
    record = _read_sidecar(require(path, stage)) or {}
    if record.get("sha256") != _sha256_or_none(path):
        raise WorkspaceError(
            f"{path}: is not what was written there; run `reptrt {stage} MODEL` again"
        )
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def discard(artifact: Path) -> None:
    """Remove what an earlier run made and this one does not."""
    _sidecar(artifact).unlink(missing_ok=True)
    artifact.unlink(missing_ok=True)


def stage_records(workspace: Workspace) -> dict[str, dict[str, Any]]:
    """What the sidecars say of each finished stage, in the order of the road."""
    records: dict[str, dict[str, Any]] = {}
    for field in fields(workspace):
        record = _read_sidecar(getattr(workspace, field.name))
        if record is not None:
            records[record["stage"]] = record
    return records


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


def _read_sidecar(artifact: Path) -> dict[str, Any] | None:
    """Record of a finished stage; None where it is missing or not what `Stage` writes."""
    try:
        record = json.loads(_sidecar(artifact).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and "stage" in record else None


def _sha256_or_none(path: Path) -> str | None:
    try:
        return file_sha256(path)
    except OSError:
        return None


def _sidecar(artifact: Path) -> Path:
    return artifact.with_name(f"{artifact.name}.json")
