"""Calibrate once, build for many targets: a shared stage copies what another run made."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from reptrt.engines.artifacts import replace_when_done
from reptrt.pipeline import choose_scales
from reptrt.pipeline.workspace import stage
from reptrt.pipeline.workspace.folder import WorkspaceError, require
from reptrt.pipeline.workspace.stage import Stage
from tests.command_line import TinyProject, reptrt
from tests.run_records import edit_record, record_of


class Work:
    """Writes two artifacts in the folder of one target, and counts how often it was called."""

    def __init__(self, folder: Path, command: str = "reptrt engine m") -> None:
        self.calls = 0
        self.first, self.second = folder / "first.bin", folder / "second.bin"
        artifacts = [self.first, self.second]
        self.stage = Stage("calibrate", command, 3, {"bits": (8, 8)}, artifacts, shared=True)

    def __call__(self) -> None:
        self.calls += 1
        for path in (self.first, self.second):
            with replace_when_done(path) as temporary:
                temporary.write_text(f"content of {path.name}")


@pytest.fixture
def lender(tmp_path: Path) -> Work:
    """A finished stage of the target `rtx`."""
    work = Work(tmp_path / "m" / "mae-w8a8" / "rtx")
    work.stage.run(work)
    return work


@pytest.fixture
def borrower(tmp_path: Path, lender: Work) -> Work:
    """The same stage of the target `cpu`, which has not run."""
    return Work(tmp_path / "m" / "mae-w8a8" / "cpu", "reptrt kit m")


def record(work: Work) -> dict[str, Any]:
    return record_of(work.first.parent, "calibrate")


def edit(work: Work, **changes: object) -> None:
    edit_record(work.first.parent, "calibrate", **changes)


def test_a_second_target_takes_what_the_first_one_made(
    lender: Work, borrower: Work, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "reptrt"):
        borrower.stage.run(borrower)
        borrower.stage.run(borrower)
    assert (lender.calls, borrower.calls) == (1, 0)
    assert borrower.second.read_text() == "content of second.bin"
    assert caplog.messages == [
        f"calibrate: same inputs as in {lender.first.parent}, copied from there",
        "calibrate: fresh, skipped",
    ]


def test_of_two_that_want_it_at_the_same_time_one_makes_it_and_the_other_waits(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = (Work(tmp_path / "m" / one / "cpu") for one in ("mae-w8a8", "mse-w8a8"))
    begun = threading.Event()
    waits = "calibrate: waits for another run that makes it"

    def slowly() -> None:
        begun.set()
        until = time.monotonic() + 20
        while waits not in caplog.messages and time.monotonic() < until:
            time.sleep(0.01)
        first()

    with caplog.at_level(logging.INFO, "reptrt"), ThreadPoolExecutor(2) as pool:
        one = pool.submit(first.stage.run, slowly)
        assert begun.wait(20)
        pool.submit(second.stage.run, second).result()
        one.result()
    assert waits in caplog.messages
    assert (first.calls, second.calls) == (1, 0)
    assert second.second.read_text() == "content of second.bin"


def test_who_waited_for_one_that_failed_makes_it(tmp_path: Path) -> None:
    first, second = (Work(tmp_path / "m" / one / "cpu") for one in ("mae-w8a8", "mse-w8a8"))
    begun = threading.Event()

    def fail() -> None:
        begun.set()
        time.sleep(0.1)
        raise ValueError("no")

    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(first.stage.run, fail)
        assert begun.wait(20)
        pool.submit(second.stage.run, second).result()
        with pytest.raises(ValueError, match="no"):
            one.result()
    assert second.calls == 1


def test_the_record_of_a_copy_says_who_made_it_and_where_it_is_from(
    lender: Work, borrower: Work
) -> None:
    borrower.stage.run(borrower)
    original, copy = record(lender), record(borrower)
    assert copy.pop("copied_from") == str(lender.first.parent)
    assert copy == original
    assert copy["command"] == "reptrt engine m"
    assert "copied_from" not in original


def test_a_third_target_takes_a_copy_of_a_copy(
    lender: Work, borrower: Work, tmp_path: Path
) -> None:
    borrower.stage.run(borrower)
    shutil.rmtree(lender.first.parent)
    third = Work(tmp_path / "m" / "mae-w8a8" / "orin")
    third.stage.run(third)
    assert third.calls == 0
    assert record(third)["copied_from"] == str(borrower.first.parent)


@pytest.mark.parametrize(("folder", "calls"), [("m/auto-w8a8/cpu", 0), ("other/mae-w8a8/cpu", 1)])
def test_the_inputs_decide_within_one_model(
    lender: Work, tmp_path: Path, folder: str, calls: int
) -> None:
    work = Work(tmp_path / folder)
    work.stage.run(work)
    assert work.calls == calls


@pytest.mark.parametrize("changed", [{"inputs": {"bits": (8, 4)}}, {"shared": False}])
def test_other_inputs_and_stages_that_are_not_shared_run(
    borrower: Work, changed: dict[str, Any]
) -> None:
    replace(borrower.stage, **changed).run(borrower)
    assert borrower.calls == 1
    assert "copied_from" not in record(borrower)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda work: work.second.unlink(),
        lambda work: work.second.write_text("tampered"),
        lambda work: (work.second.unlink(), work.second.mkdir()),
        lambda work: work.first.with_name("run.json").unlink(),
        lambda work: work.first.with_name("run.json").write_text('{"stages": '),
        lambda work: edit(work, inputs={"bits": [4, 4]}),
        lambda work: edit(work, versions={"torch": "0.1"}),
        lambda work: (shutil.rmtree(work.first.parent), work.first.parent.write_text("")),
    ],
    ids=["deleted", "tampered", "a folder", "no records", "half a file", "other inputs",
         "other versions", "a file in place of the target's folder"],
)  # fmt: skip
def test_spoilt_or_half_written_artifacts_are_not_taken(
    lender: Work, borrower: Work, spoil: Callable[[Work], object]
) -> None:
    spoil(lender)
    borrower.stage.run(borrower)
    assert borrower.calls == 1
    assert borrower.second.read_text() == "content of second.bin"
    assert "copied_from" not in record(borrower)


def test_an_artifact_that_changes_while_it_is_copied_is_not_taken(
    borrower: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage.shutil, "copyfile", lambda source, target: target.write_text("newer"))
    borrower.stage.run(borrower)
    assert borrower.calls == 1
    assert borrower.first.read_text() == "content of first.bin"


@pytest.mark.parametrize("name", ["first.bin", "second.bin", "run.json"])
def test_a_copy_that_was_stopped_does_not_look_finished(
    borrower: Work, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    rename = Path.replace

    def stop(self: Path, target: Path) -> Path:
        if target.name == name:
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            borrower.stage.run(borrower)
    with pytest.raises(WorkspaceError, match="not made yet"):
        require(borrower.second, "calibrate")
    assert not list(borrower.first.parent.glob(".*"))
    borrower.stage.run(borrower)
    assert borrower.calls == 0
    assert borrower.second.read_text() == "content of second.bin"


def test_what_another_target_has_not_finished_is_left_alone(lender: Work, borrower: Work) -> None:
    half = lender.first.with_name("calibrate.unfinished")
    half.mkdir()
    borrower.stage.run(borrower)
    assert half.exists()
    names = {path.name for path in borrower.first.parent.iterdir()}
    assert names == {"first.bin", "second.bin", "run.json"}


@pytest.mark.parametrize(
    ("bound", "targets", "copied"),
    [
        ((), ("cpu", "jetson-orin-nx"), ["calibrate"]),
        # Where a bound counts what FP16 costs the rest, that has to be the same.
        (("--min-snr", 55), ("rtx-40", "jetson-orin-nx"), ["sensitivity", "calibrate"]),
    ],
)
def test_one_calibration_serves_every_target(
    tiny: TinyProject,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    bound: tuple[object, ...],
    targets: tuple[str, ...],
    copied: list[str],
) -> None:
    made = []
    create = choose_scales.create_calibrator
    monkeypatch.setattr(
        choose_scales, "create_calibrator", lambda *given: made.append(given) or create(*given)
    )

    def calibrate(target: str, *more: object) -> Path:
        options = [*tiny.options[:-1], target, *bound, "--workspace", tmp_path, *more]
        outcome = reptrt("calibrate", *options)
        assert outcome.code == 0, outcome.err
        return tiny.files_of(tmp_path).with_name(target)

    first = calibrate("tensorrt-rtx")
    once = len(made)
    assert once == len(copied)  # with a bound all in INT8, which falls short, and layers in float
    for target in targets:
        files = calibrate(target)
        for name in ("calibration.safetensors", "scales.json", "sensitivity.json"):
            if bound or name != "sensitivity.json":
                assert (files / name).read_bytes() == (first / name).read_bytes()
        for name in copied:
            assert Path(record_of(files, name)["copied_from"]).parent == files.parent
    assert len(made) == once
    calibrate(targets[0], "--seed", 1)
    assert len(made) == 2 * once
