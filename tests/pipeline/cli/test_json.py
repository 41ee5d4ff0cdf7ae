"""`--json`: what scripts read of every command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reptrt.pipeline.cli.main import cli
from reptrt.pipeline.dry_run import ROAD
from tests.command_line import TinyProject, reptrt
from tests.onnx_files import from_text


@pytest.mark.parametrize("command", sorted(cli.commands))
def test_every_command_has_it(command: str) -> None:
    assert "--json" in reptrt(command, "-h").out


@pytest.mark.parametrize("command", ["models", "calibrators", "targets", "doctor"])
def test_lists_are_json(command: str) -> None:
    outcome = reptrt(command, "--json")
    assert outcome.code == 0
    assert json.loads(outcome.out)


@pytest.mark.parametrize("stage", ["calibrate", "export", "build", "validate"])
def test_a_stage_prints_its_record(stage: str, tiny: TinyProject, workspace: Path) -> None:
    options = [*tiny.options, "--workspace", workspace]
    if stage == "validate":
        options += ["--eval", tiny.photos]
    outcome = reptrt(stage, *options, "--json")
    assert outcome.code == 0
    printed = json.loads(outcome.out)
    folder = tiny.files_of(workspace)
    assert printed["folder"] == str(folder)
    assert printed[stage] == json.loads((folder / "run.json").read_text())["stages"][stage] | {
        "copied_from": None
    }


def test_compare_prints_its_file(tiny: TinyProject, workspace: Path) -> None:
    options = [*tiny.options, "--eval", tiny.photos, "--workspace", workspace]
    outcome = reptrt("compare", *options, "--calibrators", "minmax", "--json")
    assert outcome.code == 0
    assert [row["calibrator"] for row in json.loads(outcome.out)["rows"]] == ["minmax"]


def test_bench_prints_its_percentiles(tmp_path: Path) -> None:
    text = """<ir_version: 9, opset_import: ["": 19]>
        toy (float[N,3,4,4] images) => (float[N,3,4,4] y) { y = Relu(images) }"""
    file = from_text(text, tmp_path / "one.onnx")
    outcome = reptrt("bench", file, "--seconds", 0.01, "--json")
    assert outcome.code == 0
    printed = json.loads(outcome.out)
    assert printed["file"] == str(file)
    assert 0 < printed["latency"]["p50"] <= printed["latency"]["p99"]


def test_a_dry_run_says_what_would_run_and_leaves_nothing(
    tiny: TinyProject, tmp_path: Path
) -> None:
    options = [*tiny.options, "--eval", tiny.photos, "--workspace", tmp_path / "new"]
    outcome = reptrt("engine", *options, "--dry-run", "--json")
    assert outcome.code == 0
    planned = json.loads(outcome.out)
    assert [one["name"] for one in planned["stages"]] == list(ROAD)
    assert {one["state"] for one in planned["stages"]} == {"to run"}
    assert planned["plan"]["calibrator"] == "minmax"
    assert (planned["calibration_images"], planned["labelled_images"]) == (12, 8)
    assert planned["compared_images"] is None
    assert planned["seconds"] == pytest.approx(
        sum(one["seconds"] for one in planned["stages"]), abs=0.5
    )
    assert not [path for path in (tmp_path / "new").rglob("*") if path.is_file()]


def test_a_dry_run_of_a_gate_without_labels_says_on_how_many_images(
    tiny: TinyProject, tmp_path: Path
) -> None:
    options = [*tiny.options, "--workspace", tmp_path / "new", "--max-drop", 3, "--dry-run"]
    planned = json.loads(reptrt("engine", *options, "--json").out)
    assert (planned["labelled_images"], planned["compared_images"]) == (None, 12)
    assert "12 without labels to compare INT8 with FP32" in reptrt("engine", *options).out


def test_a_dry_run_knows_what_is_done_and_how_long_it_took(
    tiny: TinyProject, workspace: Path
) -> None:
    options = [*tiny.options, "--eval", tiny.photos, "--workspace", workspace]
    before = {path: path.read_bytes() for path in workspace.rglob("*.json")}
    outcome = reptrt("engine", *options, "--dry-run")
    assert outcome.code == 0
    lines = [line.split() for line in outcome.out.splitlines()]
    (calibrate,) = (line for line in lines if line[:1] == ["calibrate"])
    assert calibrate[1] == "done"
    assert calibrate[-2:] == ["last", "run"]
    assert before == {path: path.read_bytes() for path in workspace.rglob("*.json")}


def test_a_dry_run_refuses_what_the_run_would_refuse(tiny: TinyProject, tmp_path: Path) -> None:
    outcome = reptrt(
        "engine", *tiny.options, "--min-accuracy", 1, "--workspace", tmp_path / "new", "--dry-run"
    )
    assert outcome.code == 2
    assert "min-accuracy" in outcome.err
