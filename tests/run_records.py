"""Read and spoil `run.json`, the records of a run's stages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def record_of(files: Path, stage: str) -> dict[str, Any]:
    """What the folder `files` says of `stage`."""
    record: dict[str, Any] = json.loads((files / "run.json").read_text())["stages"][stage]
    return record


def edit_record(files: Path, stage: str, **changes: object) -> None:
    """Change keys of a record."""
    content = json.loads((files / "run.json").read_text())
    content["stages"][stage].update(changes)
    (files / "run.json").write_text(json.dumps(content))


def drop_record(files: Path, stage: str) -> None:
    """Make `stage` look as if it had never finished."""
    content = json.loads((files / "run.json").read_text())
    content["stages"].pop(stage, None)
    (files / "run.json").write_text(json.dumps(content))
