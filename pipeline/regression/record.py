"""Write the entry of a run to a file of baselines: what it was, and what it gave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from reptrt.engines.artifacts import replace_when_done
from reptrt.engines.report_schema import Report
from reptrt.pipeline.recipe import RUN_RECIPE, load_recipe, slug
from reptrt.pipeline.regression.baselines import Baseline, BaselineError, load_baselines
from reptrt.pipeline.regression.regress import METRICS, place_of
from reptrt.pipeline.workspace.folder import read_artifact, require_same
from reptrt.pipeline.workspace.run_records import sha256_or_none

_IMAGES = 3
"""That may change before accuracy or agreement counts as changed."""
_SHARE = 0.01
"""Of megabytes and of a ratio of latencies, likewise."""


def record_run(run: Path, baselines: Path, files: Path) -> str:
    """Append the entry of a finished run; the rest of the file stays as it is.

    Args:
        run: its folder, with recipe.yaml and report.json.
        baselines: YAML that gets the entry; may not exist yet.
        files: folder that the entry's files are relative to, where they lie in it.

    Returns:
        Name of the entry.

    Raises:
        BaselineError: there is such an entry already, or the run measured nothing that could be kept.
        WorkspaceError, RecordError, RecipeError: `run` is not the folder of a finished run, or its
            report or recipe was changed since.
        WriteError: `baselines` cannot be written.
    """
    report = read_artifact(run / "report.json", "report", Report)
    require_same(run, "report", {"recipe": sha256_or_none(run / RUN_RECIPE)})
    load_recipe(str(run), {}, run / RUN_RECIPE)  # there has to be one
    recipe = load_recipe(str(run), {})
    known = load_baselines(baselines) if baselines.exists() else {}
    name = slug(report.model)
    if name in known:
        raise BaselineError(
            f"{baselines}: has an entry {name!r} already; change its lines, or remove it"
        )
    values = recipe.model_dump(mode="json", exclude_defaults=True)
    entry = {
        "recipe": {key: _relative(value, files) for key, value in values.items()},
        **_measured(report),
    }
    try:
        Baseline.model_validate(entry)
    except ValueError as error:
        raise BaselineError(f"{run}: measured nothing that a baseline could expect") from error
    before = baselines.read_text(encoding="utf-8") if baselines.exists() else ""
    text = yaml.safe_dump({name: entry}, sort_keys=False, allow_unicode=True)
    with replace_when_done(baselines) as path:
        path.write_text(
            f"{before.rstrip()}\n\n# {report.command}\n{text}".lstrip(), encoding="utf-8"
        )
    return name


def _measured(report: Report) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for metric in METRICS:
        value = metric.read(report)
        if value is None:
            continue
        expected = {"value": round(value, 3), "tolerance": _tolerance(metric.name, value, report)}
        place = place_of(metric.name, report)
        if place is None:
            found[metric.name] = expected
        elif place:
            found[metric.name] = {place: expected}
    return found


def _tolerance(metric: str, value: float, report: Report) -> float:
    if metric in ("accuracy", "agreement") and report.accuracy and report.accuracy.num_images:
        return round(100 * _IMAGES / report.accuracy.num_images, 2)
    return 0.0 if metric in ("kernels", "int8_coverage") else round(_SHARE * value, 3)


def _relative(value: object, files: Path) -> object:
    """A path in `files`, relative to it; all else as it is."""
    if isinstance(value, str) and Path(value).is_absolute():
        inside = Path(value).is_relative_to(files.absolute())
        return Path(value).relative_to(files.absolute()).as_posix() if inside else value
    return value
