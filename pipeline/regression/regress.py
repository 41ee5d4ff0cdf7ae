"""Run recipes and compare the results with their baselines; unclaimed improvements fail too.

The rule is that of NNCF's conformance tests: worse than the baseline by more than its tolerance is a
regression, and better by more is an improvement that has to be claimed, else the next change may
lose it unnoticed. What cannot be compared here is skipped, with the reason.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from reptrt.engines.artifacts import replace_when_done, writing
from reptrt.engines.file_lock import hold_lock
from reptrt.engines.report_schema import Accuracy, ModelLatency, Percentiles, Report, Verdict
from reptrt.engines.target import resolve_target
from reptrt.pipeline.recipe import Recipe
from reptrt.pipeline.regression.baselines import (
    Baseline,
    Expected,
    MissingFilesError,
    choose,
    entry_recipe,
    line_of,
    load_baselines,
    recipes_without_baseline,
)
from reptrt.pipeline.workspace.records import read_record

Outcome = Literal["ok", "regression", "improvement", "error", "skipped"]
REGRESSION, IMPROVEMENT, NOTHING_CHECKED = 1, 3, 4
GATE_FAILED = 1
_ROUNDING = 1e-9
_STDERR = 2
_KEPT = ("report.json", "report.html", "run.log")


@dataclass(frozen=True)
class BaselineCheck:
    """One value of a run against its baseline.

    Attributes:
        entry: name of the baseline.
        metric: what was compared; "" for the whole entry.
        outcome: how it ended.
        measured: in the unit of the metric.
        expected: what the baseline says.
        message: what is wrong and what to do, or why nothing was compared.
        exit_code: of the run, where that failed.
    """

    entry: str
    metric: str
    outcome: Outcome
    measured: float | None = None
    expected: Expected | None = None
    message: str = ""
    exit_code: int = 0


@dataclass(frozen=True)
class Metric:
    """One number of a report: whether higher is better, and how to read it."""

    name: Literal["accuracy", "agreement", "int8_coverage", "kernels", "megabytes", "latency_ratio"]
    more_is_better: bool
    read: Callable[[Report], float | None]


def run_entries(
    path: Path, names: Sequence[str], files: Path, folder: Path, options: Mapping[str, Any]
) -> list[BaselineCheck]:
    """Run each entry from scratch, in a process of its own, and judge its report.

    Args:
        path: YAML with the baselines.
        names: of its entries; none for all, and for the recipes that have no entry.
        files: folder of weights and images.
        folder: gets one folder for each entry: recipe.yaml, report.json, report.html, run.log, and
            all else in `run/`.
        options: fields of `Recipe` that override the entries'; None keeps theirs.

    Raises:
        BaselineError: `path` is not legal or lacks one of `names`.
        RecipeError, UnknownTargetError: the recipe of an entry is not legal.
        WriteError: `folder` cannot be written.
    """
    known = load_baselines(path)
    if target := options.get("target"):
        resolve_target(target)  # a wrong name is said before the first entry runs
    recipes = {
        name: _recipe_or_reason(baseline, files, options)
        for name, baseline in choose(known, names).items()
    }
    findings = []
    for name, recipe in recipes.items():
        if isinstance(recipe, Recipe):
            findings += _run_and_judge(path, name, known[name], recipe, folder / name)
        else:
            findings.append(BaselineCheck(name, "", "skipped", message=recipe))
    for missing in [] if names else recipes_without_baseline(known):
        findings.append(
            BaselineCheck(missing.name, "", "skipped", message=f"no baseline in {path}")
        )
    return findings


def _recipe_or_reason(baseline: Baseline, files: Path, options: Mapping[str, Any]) -> Recipe | str:
    try:
        return entry_recipe(baseline, files, options)
    except MissingFilesError as error:
        return str(error)


def _run_and_judge(
    path: Path, entry: str, baseline: Baseline, recipe: Recipe, folder: Path
) -> list[BaselineCheck]:
    with replace_when_done(folder / "recipe.yaml") as file:
        chosen = recipe.model_dump(mode="json", exclude_defaults=True, exclude={"model"})
        file.write_text(yaml.safe_dump(chosen), encoding="utf-8")
    with hold_lock(folder / ".lock") as lock:
        code = _run(recipe.model, folder, lock)
        made = folder / "report.json"
        report = read_record(made, Report) if code in (0, GATE_FAILED) and made.exists() else None
        if report is None:
            again = f"`reptrt engine {recipe.model} --recipe {folder / 'recipe.yaml'}`"
            message = f"{again} left with {code}; what it said is above"
            return [BaselineCheck(entry, "", "error", message=message, exit_code=code)]
    return [*_gate(entry, report.verdict), *judge(path, entry, baseline, report)]


def _gate(entry: str, verdict: Verdict) -> list[BaselineCheck]:
    """What the recipe's own gate says, where it asks for one."""
    if verdict.decision == "not judged":
        return []
    outcome: Outcome = "regression" if verdict.stops else "ok"
    return [
        BaselineCheck(entry, "gate", outcome, message="" if outcome == "ok" else verdict.reason)
    ]


def _run(model: str, folder: Path, lock: int) -> int:
    """Walk the whole road and keep what tells about it; return the exit code.

    All that it says goes to stderr: stdout is for the result of all entries. An earlier run goes first: its stages would count as fresh although our code has changed. The run
    holds `lock` too: where this process is killed, the next one waits for it.
    """
    run = folder / "run"
    with writing(run):
        if run.is_symlink():  # what it leads to is somebody else's
            run.unlink()
        elif run.exists():
            shutil.rmtree(run)
        for name in _KEPT:
            (folder / name).unlink(missing_ok=True)
    recipe = str(folder / "recipe.yaml")
    options = ["--recipe", recipe, "--workspace", str(run)]
    command = [sys.executable, "-m", "reptrt", "engine", model, *options]
    code = subprocess.run(command, check=False, pass_fds=(lock,), stdout=_STDERR).returncode
    for name in _KEPT:
        for made in run.rglob(name):
            with replace_when_done(folder / name) as file:
                shutil.copyfile(made, file)
    return code


def judge(path: Path, entry: str, baseline: Baseline, report: Report) -> list[BaselineCheck]:
    """Compare a report with its baseline.

    Args:
        path: YAML that holds `baseline`, for messages.
        entry: name of `baseline` in it.
        baseline: what is expected.
        report: what the run gave.
    """
    findings = []
    for metric in METRICS:
        expected, keys = getattr(baseline, metric.name), [entry, metric.name]
        if isinstance(expected, dict):
            where, reason = _PLACES[metric.name](report)
            matching = [key for key in expected if f"{where}.".startswith(f"{key}.")]
            if reason or not matching:
                measured = None if reason else metric.read(report)
                reason = (
                    reason or f"no baseline for {where}; one can be added at {line_of(path, *keys)}"
                )
                findings.append(
                    BaselineCheck(entry, metric.name, "skipped", measured, None, reason)
                )
                continue
            keys.append(max(matching, key=len))
            expected = expected[keys[-1]]
        if expected is not None:
            findings.append(_compare(path, keys, metric, expected, metric.read(report)))
    return findings


def _compare(
    path: Path, keys: list[str], metric: Metric, expected: Expected, measured: float | None
) -> BaselineCheck:
    """Apply the two-sided rule; what was not measured, though expected, is a regression."""
    place = f"{line_of(path, *keys)}: {'.'.join(keys[1:])}"
    found = BaselineCheck(keys[0], metric.name, "ok", measured, expected)
    value, tolerance = expected.value, expected.tolerance
    if measured is None:
        message = f"{place}: not measured, but the baseline expects {value:g}"
        return replace(found, outcome="regression", message=message)
    gain = measured - value if metric.more_is_better else value - measured
    if abs(gain) <= tolerance + _ROUNDING:
        return found
    comparison = (
        f"{measured:g} is {'better' if gain > 0 else 'worse'} than {value:g} ± {tolerance:g}"
    )
    line = f"`{keys[-1]}: {{value: {measured:g}, tolerance: {tolerance:g}}}`"
    if gain < 0:
        message = f"{place}: {comparison}: mend it, or change this line to {line} and say why"
        return replace(found, outcome="regression", message=message)
    message = f"{place}: {comparison}: claim it, change this line to {line}"
    return replace(found, outcome="improvement", message=message)


def exit_code(findings: list[BaselineCheck]) -> int:
    """0 ok, 1 regression, 3 unclaimed improvement, 4 nothing compared; else the exit code of a failed run."""
    outcomes = {finding.outcome for finding in findings}
    failed = [finding.exit_code for finding in findings if finding.outcome == "error"]
    if "regression" in outcomes:
        return REGRESSION
    if failed:
        return failed[0] if failed[0] > 0 else 128 - failed[0]  # killed: as a shell says it
    if "improvement" in outcomes:
        return IMPROVEMENT
    return 0 if "ok" in outcomes else NOTHING_CHECKED


def _latency_ratio(report: Report) -> float | None:
    """Medians by the GPU's own clock, without the copies, where it was read."""
    if report.latency_ms is None:
        return None
    reference, quantized = _timed(report.latency_ms)
    if reference is None or quantized is None or not reference.p50 or quantized.p50 is None:
        return None
    return round(quantized.p50 / reference.p50, 3)


def _timed(latency: ModelLatency) -> tuple[Percentiles | None, Percentiles | None]:
    """What INT8 has to beat, and INT8."""
    if latency.device_only is not None:
        return latency.device_only.fp16, latency.device_only.quantized
    return latency.fp16 or latency.fp32, latency.quantized


def _megabytes(report: Report) -> float | None:
    return None if report.cost is None else round(report.cost.int8.traffic.megabytes, 2)


def _timed_on(report: Report) -> tuple[str, str]:
    """The GPU, or for the target `cpu` the processor; and why its time says nothing, or ""."""
    latency = report.latency_ms
    if latency is None:
        return "", "no latency was measured"
    library, builder = (str(backend).split()[0] for backend in (latency.backend, report.backend))
    if library != builder:
        return "", f"no GPU here: the time of {library} says nothing about the engine"
    if _latency_ratio(report) is None:
        return "", "neither FP16 nor FP32 was timed beside INT8"
    return str(latency.device), ""


def place_of(metric: str, report: Report) -> str | None:
    """The builder or device that a value belongs to; "" where it says nothing, None where it needs none."""
    if metric not in _PLACES:
        return None
    where, reason = _PLACES[metric](report)
    return "" if reason else where


def _built_by(report: Report) -> tuple[str, str]:
    return report.backend, ""


def _accuracy(report: Report) -> Accuracy:
    return report.accuracy or Accuracy(metric="")


_PLACES: dict[str, Callable[[Report], tuple[str, str]]] = {
    "kernels": _built_by,
    "megabytes": _built_by,
    "latency_ratio": _timed_on,
}
METRICS = (
    Metric("accuracy", True, lambda report: _accuracy(report).quantized),
    Metric("agreement", True, lambda report: report.agreement),
    Metric(
        "int8_coverage", True, lambda report: report.fusion.int8_coverage if report.fusion else None
    ),
    Metric("kernels", False, lambda report: report.fusion.kernels if report.fusion else None),
    Metric("megabytes", False, _megabytes),
    Metric("latency_ratio", False, _latency_ratio),
)
