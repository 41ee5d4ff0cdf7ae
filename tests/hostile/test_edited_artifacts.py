"""Whatever somebody does to a file of a run: one line, or the file is made again; never a wrong report.

The files are those that runs really write, so that a new kind of file is tried too.
"""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest

from reptrt.pipeline.workspace.folder import ARTIFACTS
from tests.command_line import Outcome, TinyProject, reptrt
from tests.hostile.edits import FORGED, PLAIN, a_link, copy_of, forge
from tests.hostile.limited import time_limit

NOT_TRIED = {
    "model.fp16.onnx", "model.fp16.engine",  # are written where a GPU is
    "model.end2end.onnx", "model.cut.onnx", "model.tail.onnx",  # as model.trt.onnx, of detectors
}  # fmt: skip
NAMES = sorted({*ARTIFACTS.values(), "run.json", "recipe.yaml", "model.cpu.onnx"} - NOT_TRIED)
STAGES = ("report", "export", "build", "validate")
ALL = bool(os.environ.get("REPTRT_REGRESSION"))
FEW_PLAIN, FEW_FORGED = (
    ("cut", "a pipe"),
    ("NaN", "below its range", "empty lists", "unknown names"),
)


@dataclass(frozen=True)
class Finished:
    """A whole run."""

    workspace: Path
    options: tuple[object, ...]

    @property
    def files(self) -> Path:
        (found,) = self.workspace.glob("tiny_models-*/*-w*/*")
        return found

    def run(self, command: str, *more: object) -> Outcome:
        with time_limit():
            return reptrt(command, *self.options, "--workspace", self.workspace, *more)

    def copy(self, folder: Path) -> Finished:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.workspace, folder)
        return Finished(folder, self.options)

    @property
    def report(self) -> dict[str, Any]:
        """What the report says of the model, and nothing of how long it took."""
        found: dict[str, Any] = json.loads((self.files / "report.json").read_text())
        for key in ("seconds", "peak_rss_mb", "latency_ms", "command", "size_bytes"):
            del found[key]
        return found


@pytest.fixture(scope="module")
def runs(
    tiny: TinyProject, red_and_blue: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Finished, ...]:
    """Runs that together write every kind of file."""
    folder = tmp_path_factory.mktemp("edited")
    known = ["--image-size", 32, "--data", red_and_blue, "--eval", red_and_blue]
    learned = [
        "--calibrator",
        "repapq",
        "--effort",
        "high",
        "--weight-bits",
        4,
        "--activation-bits",
        4,
    ]
    rtx, least = ["--target", "tensorrt-rtx"], ["--max-drop", 5, "--min-snr", 55]
    choices = {
        "learned": ["colours", *known, *learned, *rtx, "--reconstruction", "iterations=9", "--quantize", "all"],
        "pays": ["colours", *known, *rtx, "--calibrator", "minmax"],
        "budget": ["joined", *known, *least, "--target", "cpu", "--calibrator", "minmax"],
    }  # fmt: skip
    choices = {name: [f"tiny_models:{model}", *more] for name, (model, *more) in choices.items()}
    found = tuple(Finished(folder / name, tuple(options)) for name, options in choices.items())
    for one in found:
        outcome = one.run("engine")
        assert outcome.code == 0, outcome.err
    return found


@pytest.fixture(scope="module")
def other(runs: tuple[Finished, ...], tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The same as the first run, with other images and another gate."""
    first = runs[0]
    one = Finished(tmp_path_factory.mktemp("other"), (*first.options, "--num-samples", 3))
    assert one.run("engine").code == 0
    return one


def with_file(runs: tuple[Finished, ...], name: str) -> Finished:
    return next(one for one in runs if (one.files / name).is_file())


def test_the_runs_write_every_kind_of_file(runs: tuple[Finished, ...]) -> None:
    written = {path.name for one in runs for path in one.files.iterdir()}
    assert written == set(NAMES)


def deploy(run: Finished) -> Outcome:
    """`kit` of an engine, `triton` of a file for processors."""
    if "cpu" in run.options:
        return run.run("triton", "--output", run.workspace / "repository")
    return run.run("kit", "--output", run.workspace / "kit.tar.gz")


def deployed(run: Finished) -> bytes:
    """The graph that left the workspace, without what is said of its accuracy, which may not be measured."""
    found = next(run.workspace.glob("repository/*/1/model.onnx"), None)
    if found is None:
        with tarfile.open(run.workspace / "kit.tar.gz") as archive:
            (name,) = (one for one in archive.getnames() if one.endswith("model.trt.onnx"))
            archive.extract(name, run.workspace / "kit", filter="data")
        found = run.workspace / "kit" / name
    return onnx.load(found).graph.SerializeToString(deterministic=True)


def assert_one_line_or_right(run: Finished, outcome: Outcome, reference: Finished) -> None:
    """The command refused on one line, or its report is that of the run which nobody touched."""
    if outcome.code == 0:
        assert run.report == reference.report
    else:
        assert outcome.code == 2, outcome.err
        (line,) = outcome.complaints
        assert line.startswith("reptrt: ")
        assert line.isprintable()


@pytest.mark.parametrize("name", NAMES)
def test_an_edited_file_is_refused_or_made_again(
    runs: tuple[Finished, ...], tmp_path: Path, name: str
) -> None:
    reference = with_file(runs, name)
    for edit in PLAIN if ALL else FEW_PLAIN:
        run = reference.copy(tmp_path / "build")
        if not PLAIN[edit](run.files / name):
            continue
        for command in ("report", "engine"):
            assert_one_line_or_right(run, run.run(command), reference)


@pytest.mark.skipif(not ALL, reason="minutes of work: `make regress` runs it")
@pytest.mark.parametrize("name", NAMES)
def test_what_leaves_the_folder_after_an_edit_is_what_it_would_have_been(
    runs: tuple[Finished, ...], tmp_path: Path, name: str
) -> None:
    reference = with_file(runs, name).copy(tmp_path / "reference")
    assert deploy(reference).code == 0
    for edit in PLAIN:
        run = with_file(runs, name).copy(tmp_path / "build")
        if not PLAIN[edit](run.files / name):
            continue
        outcome = deploy(run)
        assert outcome.code in (0, 2), (edit, outcome.err)
        if outcome.code == 2:
            (line,) = outcome.complaints
            assert line.isprintable()
        else:
            assert deployed(run) == deployed(reference), edit


@pytest.mark.parametrize("name", ["report.json", "recipe.yaml", "run.json"])
def test_no_baseline_is_recorded_from_an_edited_run(
    runs: tuple[Finished, ...], tmp_path: Path, name: str
) -> None:
    for edit in ("cut", "garbage", "removed", "number", "a dead link"):
        run = runs[0].copy(tmp_path / "build")
        if not {**PLAIN, **FORGED}[edit](run.files / name):
            (run.files / name).write_text("model: repvgg_a0\n")
        outcome = reptrt("regress", "--record", run.files, "--baselines", tmp_path / "b.yaml")
        assert outcome.code == 2, outcome.err
        (line,) = outcome.complaints
        assert line.isprintable()
        assert not (tmp_path / "b.yaml").exists()


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_was_forged_with_its_hash_has_legal_values_or_is_refused(
    runs: tuple[Finished, ...], tmp_path: Path, name: str
) -> None:
    reference = with_file(runs, name)
    for edit in FORGED if ALL else FEW_FORGED:
        run = reference.copy(tmp_path / "build")
        if not FORGED[edit](run.files / name):
            continue
        if name != "run.json":
            forge(run.files / name)
        for command in ("report", "engine"):
            outcome = run.run(command)
            if name.endswith(".onnx") and outcome.code in (
                0,
                1,
            ):  # measured anew: it is as bad as it is
                continue
            assert_one_line_or_right(run, outcome, reference)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_another_run_does_not_get_into_the_report(
    runs: tuple[Finished, ...], other: Finished, tmp_path: Path, name: str
) -> None:
    reference = runs[0]
    run = reference.copy(tmp_path / "build")
    if not (run.files / name).is_file() or not copy_of(other.files / name, run.files / name):
        return
    for command in (*STAGES, "report", "engine") if ALL else ("report", "engine"):
        outcome = run.run(command)
        if outcome.code == 0 and command not in ("report", "engine"):
            continue
        assert_one_line_or_right(run, outcome, reference)
    assert outcome.code == 0


@pytest.mark.parametrize("name", ["validation.json", "model.trt.onnx"])
def test_a_link_to_the_same_content_is_read_and_never_written_through(
    runs: tuple[Finished, ...], tmp_path: Path, name: str
) -> None:
    reference = runs[0]
    run = reference.copy(tmp_path / "build")
    a_link(run.files / name)
    before = (run.files / name).read_bytes()
    assert_one_line_or_right(run, run.run("report"), reference)
    outcome = run.run("engine", "--mean", "0.4,0.4,0.4")
    assert outcome.code in (0, 2)
    assert (run.files / f"elsewhere-{name}").read_bytes() == before
