"""`run.json`: what each finished stage of a run read and wrote, so that later ones can trust it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, JsonValue

from reptrt.engines.artifacts import file_sha256, write_json
from reptrt.engines.foreign.ranges import Amount, Count
from reptrt.pipeline.workspace.records import read_record

RECORDS = "run.json"
PACKAGES = (
    "reptrt", "torch", "torchvision", "timm", "onnx", "onnxruntime", "onnxscript", "onnx-graphsurgeon",
    "onnx2torch", "polygraphy", "tensorrt-rtx", "tensorrt", "numpy", "pillow", "safetensors",
)  # fmt: skip


Inputs = Mapping[str, object]
"""Everything that a result depends on, as JSON has it; files by their hash."""


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

    inputs: dict[str, JsonValue]
    artifacts: dict[str, str]
    seed: Count
    seconds: Amount
    peak_rss_mb: Amount
    versions: dict[str, str]
    command: str
    copied_from: str | None = None


class RunRecords(BaseModel):
    """Content of `run.json`: records by stage, in the order in which the stages finished."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    stages: dict[str, StageRecord] = {}


def read_records(folder: Path) -> dict[str, StageRecord]:
    """Records of the finished stages by name; none where `run.json` is missing.

    Raises:
        RecordError: it is not what this version of reptrt writes there.
    """
    path = folder / RECORDS
    if not path.is_symlink() and not path.exists():
        return {}
    return read_record(path, RunRecords, "remove it, and every stage runs again").stages


def made_from(folder: Path, stage: str, source: str) -> str | None:
    """Hash of the input `source` of a finished stage in `folder`; None where there is none."""
    record = read_records(folder).get(stage)
    found = None if record is None else record.inputs.get(source)
    return found if isinstance(found, str) else None


def record_stage(folder: Path, stage: str, record: StageRecord) -> None:
    """Note that `stage` has finished."""
    others = {name: one for name, one in read_records(folder).items() if name != stage}
    _write_records(folder, {**others, stage: record})


def forget_stage(folder: Path, stage: str) -> None:
    """Take back that `stage` has finished."""
    records = read_records(folder)
    if records.pop(stage, None) is not None:
        _write_records(folder, records)


def _write_records(folder: Path, records: Mapping[str, StageRecord]) -> None:
    content = RunRecords(stages=dict(records)).model_dump(mode="json", exclude_none=True)
    write_json(content, folder / RECORDS)


def as_json(values: Inputs) -> dict[str, JsonValue]:
    """The values as `run.json` gives them back."""
    loaded: dict[str, JsonValue] = json.loads(json.dumps(dict(values)))
    return loaded


def installed_versions() -> dict[str, str]:
    """Versions of the packages that decide a result."""
    found: dict[str, str] = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def sha256_or_none(path: Path) -> str | None:
    """Hex digest of a file; None where it cannot be read."""
    try:
        return file_sha256(path)
    except OSError:
        return None
