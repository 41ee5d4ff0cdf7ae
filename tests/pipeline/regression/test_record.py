"""A run that is recorded becomes an entry that it passes itself."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from reptrt.engines.report_schema import Report
from reptrt.pipeline.regression.baselines import BaselineError, load_baselines
from reptrt.pipeline.regression.record import record_run
from reptrt.pipeline.regression.regress import BaselineCheck, judge
from reptrt.pipeline.regression.summary import job_annotations, write_summary
from reptrt.pipeline.workspace.records import read_record
from tests.command_line import TinyProject, reptrt


def test_an_entry_has_the_recipe_and_the_run_passes_it(
    tiny: TinyProject, finished: Path, tmp_path: Path
) -> None:
    baselines = tmp_path / "baselines.yaml"
    baselines.write_text(
        "# ours\nother: {recipe: {model: m}, accuracy: {value: 1, tolerance: 1}}\n"
    )
    run = tiny.files_of(finished)
    outcome = reptrt(
        "regress", "--record", run, "--baselines", baselines, "--files", tiny.data.parent
    )
    assert outcome.code == 0, outcome.err
    assert "tiny_models-build: recorded in " in outcome.err
    assert baselines.read_text().startswith("# ours\nother: ")
    entry = load_baselines(baselines)["tiny_models-build"]
    assert entry.recipe["model"] == tiny.model
    assert entry.recipe["data"] == tiny.data.name  # relative to --files
    assert (entry.recipe["calibrator"], entry.recipe["target"]) == ("minmax", "tensorrt-rtx")
    report = read_record(run / "report.json", Report)
    found = judge(baselines, "tiny_models-build", entry, report)
    assert {one.metric for one in found if one.outcome == "ok"} >= {
        "accuracy",
        "agreement",
        "kernels",
        "megabytes",
    }
    assert {one.outcome for one in found} <= {"ok", "skipped"}


def test_an_entry_is_not_written_twice(tiny: TinyProject, finished: Path, tmp_path: Path) -> None:
    baselines, run = tmp_path / "baselines.yaml", tiny.files_of(finished)
    record_run(run, baselines, tmp_path)
    before = baselines.read_bytes()
    with pytest.raises(BaselineError, match="has an entry 'tiny_models-build' already"):
        record_run(run, baselines, tmp_path)
    assert baselines.read_bytes() == before


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    outcome = reptrt("regress", "--record", tmp_path, "--baselines", tmp_path / "b.yaml")
    assert outcome.code == 2
    assert len(outcome.complaints) == 1
    assert not (tmp_path / "b.yaml").exists()


def test_junit_counts_what_failed(tmp_path: Path) -> None:
    outcomes = ("ok", "regression", "improvement", "skipped", "error")
    findings = [BaselineCheck("net", one, one, message=f"<{one}>") for one in outcomes]
    write_summary(findings, tmp_path)
    suite = ElementTree.parse(tmp_path / "junit.xml").getroot()
    counts = {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")}
    assert counts == {"tests": "5", "failures": "2", "errors": "1", "skipped": "1"}
    assert [one.get("message") for one in suite.iter("failure")] == [
        "<regression>",
        "<improvement>",
    ]


def test_every_finding_that_fails_is_an_annotation() -> None:
    findings = [
        BaselineCheck("net", "accuracy", "ok"),
        BaselineCheck("net", "kernels", "regression", message="90 %\nmore"),
        BaselineCheck("other", "", "skipped", message="no weights"),
    ]
    said = "regression: net: 90 %25%0Amore"
    assert job_annotations(findings) == [f"::error title=reptrt regress::{said}"]
