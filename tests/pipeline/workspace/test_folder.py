from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from reptrt.engines.artifacts import WriteError, file_sha256, replace_when_done
from reptrt.pipeline.recipe import Recipe
from reptrt.pipeline.workspace.folder import (
    WorkspaceError,
    hold_workspace,
    open_workspace,
    require,
    require_same,
    run_folder,
    stage_records,
)
from reptrt.pipeline.workspace.records import RecordError
from reptrt.pipeline.workspace.run_records import installed_versions, read_records
from reptrt.pipeline.workspace.stage import Stage
from tests.command_line import TinyProject, reptrt


class Work:
    """Writes its text to both artifacts of a stage, and counts how often it was called."""

    def __init__(self, folder: Path) -> None:
        self.calls = 0
        self.first, self.second = folder / "first.bin", folder / "second.bin"
        self.stage = Stage("export", "reptrt export m", 3, {"a": 1}, [self.first, self.second])

    def __call__(self) -> None:
        self.calls += 1
        for path in (self.first, self.second):
            with replace_when_done(path) as temporary:
                temporary.write_text("content")


@pytest.fixture
def work(tmp_path: Path) -> Work:
    """A stage that has just run once."""
    work = Work(tmp_path)
    work.stage.run(work)
    return work


def records(work: Work) -> Path:
    return work.first.with_name("run.json")


def edit(work: Work, key: str, value: object) -> None:
    content = json.loads(records(work).read_text())
    content["stages"]["export"][key] = value
    records(work).write_text(json.dumps(content))


def test_a_stage_whose_inputs_are_the_same_is_skipped(
    work: Work, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "reptrt"):
        work.stage.run(work)
    assert work.calls == 1
    assert caplog.messages == ["export: fresh, skipped"]


def test_the_command_alone_makes_no_stage_stale(work: Work) -> None:
    replace(work.stage, command="reptrt engine m").run(work)
    assert work.calls == 1


def test_inputs_are_compared_as_json_so_a_tuple_equals_a_list(work: Work) -> None:
    replace(work.stage, inputs={"a": (1, 2)}).run(work)
    replace(work.stage, inputs={"a": [1, 2]}).run(work)
    assert work.calls == 2


@pytest.mark.parametrize("inputs", [{"a": 2}, {"a": 1, "b": None}, {}])
def test_other_inputs_run_the_stage_again(work: Work, inputs: dict[str, Any]) -> None:
    changed = replace(work.stage, inputs=inputs)
    changed.run(work)
    changed.run(work)
    assert work.calls == 2


@pytest.mark.parametrize(
    "spoil",
    [
        lambda work: work.second.unlink(),
        lambda work: work.second.write_text("other"),
        lambda work: records(work).unlink(),
        lambda work: edit(work, "artifacts", {"first.bin": "0" * 64, "second.bin": "0" * 64}),
        lambda work: edit(work, "artifacts", {"first.bin": work_digest(work)}),
        lambda work: edit(work, "versions", {**installed_versions(), "torch": "0.1"}),
    ],
    ids=["deleted", "changed", "no records", "other hash", "an artifact fewer", "other version"],
)
def test_a_spoilt_artifact_or_record_runs_the_stage_again(
    work: Work, spoil: Callable[[Work], object]
) -> None:
    spoil(work)
    work.stage.run(work)
    assert work.calls == 2
    assert work.second.read_text() == "content"
    work.stage.run(work)
    assert work.calls == 2


def test_a_stage_that_fails_keeps_whole_files_but_does_not_look_finished(work: Work) -> None:
    def fail() -> None:
        with replace_when_done(work.first) as temporary:
            temporary.write_text("new, ")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        replace(work.stage, inputs={"a": 2}).run(fail)
    assert work.first.read_text() == "content"
    assert json.loads(records(work).read_text())["stages"] == {}
    with pytest.raises(WorkspaceError, match="run `reptrt export MODEL` first"):
        require(work.first, "export")
    work.stage.run(work)  # the old inputs again: still not to be trusted
    assert work.calls == 2
    names = {path.name for path in work.first.parent.iterdir()}
    assert names == {"first.bin", "second.bin", "run.json"}


def unfinished(work: Work) -> Path:
    return work.first.with_name("export.unfinished")


def stop_in(stage: Stage) -> Path:
    """Folder that `stage` leaves when it is stopped half-way."""
    folders = []

    def stop() -> None:
        with stage.unfinished() as folder:
            folder.mkdir(parents=True)
            (folder / "half.bin").write_text("half")
            folders.append(folder)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    return folders[0]


def test_unfinished_work_is_kept_for_the_same_inputs_until_it_is_done(work: Work) -> None:
    assert stop_in(work.stage).parent == unfinished(work)
    with replace(work.stage, command="another").unfinished() as folder:
        assert (folder / "half.bin").read_text() == "half"
    assert not unfinished(work).exists()


def test_work_on_other_inputs_does_not_see_it_and_throws_it_away(work: Work) -> None:
    folder = stop_in(work.stage)
    with replace(work.stage, inputs={"a": 2}).unfinished() as other:
        assert other != folder
        assert not other.exists()
        assert folder.exists()
    assert not unfinished(work).exists()


def test_other_versions_do_not_see_it(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    with work.stage.unfinished() as first:
        pass
    monkeypatch.setattr(
        "reptrt.pipeline.workspace.stage.installed_versions", lambda: {"torch": "0.1"}
    )
    with work.stage.unfinished() as second:
        assert second != first


def test_work_that_leaves_nothing_unfinished_makes_no_folder(work: Work) -> None:
    with work.stage.unfinished():
        pass
    assert not unfinished(work).exists()


def work_digest(work: Work) -> str:
    return file_sha256(work.first)


def test_a_record_says_where_artifacts_are_from(work: Work) -> None:
    record = json.loads(records(work).read_text())["stages"]["export"]
    assert record["inputs"] == {"a": 1}
    assert record["seed"] == 3
    assert record["command"] == "reptrt export m"
    expected = "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73"
    assert record["artifacts"] == {"first.bin": expected, "second.bin": expected}  # of b"content"
    assert record["versions"].keys() >= {"reptrt", "torch", "onnx", "numpy", "pillow"}
    assert 0 <= record["seconds"] < 60
    assert record["peak_rss_mb"] > 10


def test_records_of_several_stages_share_a_file(work: Work) -> None:
    third = work.first.with_name("third.bin")
    Stage("build", "", 0, {}, [third]).run(lambda: third.write_text("x") and None)
    work.stage.run(work)
    assert list(read_records(work.first.parent)) == ["export", "build"]
    assert work.calls == 1


def test_what_a_later_stage_reads_must_be_of_the_same_inputs(work: Work) -> None:
    require_same(work.first.parent, "export", {"a": 1})
    with pytest.raises(WorkspaceError, match="is of another a; run `reptrt export MODEL` again"):
        require_same(work.first.parent, "export", {"a": 2})
    work.first.write_text("edited")
    with pytest.raises(WorkspaceError, match="is not what was written there"):
        require(work.first, "export")


def test_sidecars_of_a_former_version_are_stale_and_go(tmp_path: Path) -> None:
    workspace = open_workspace(tmp_path, Recipe(model="m"), "t")
    former = workspace.folder / "scales.json.json"
    workspace.scales.write_text("{}")
    former.write_text('{"stage": "calibrate", "sha256": "0"}')
    with pytest.raises(WorkspaceError, match="not made yet"):
        require(workspace.scales, "calibrate")
    with hold_workspace(workspace, lambda: None):
        assert not former.exists()
        assert workspace.scales.exists()


def test_the_folder_names_model_calibrator_bits_and_target(tmp_path: Path) -> None:
    recipe = Recipe(model="timm:resnet18", calibrator="mae", weight_bits=4, activation_bits=6)
    workspace = open_workspace(tmp_path, recipe, "tensorrt-rtx")
    assert workspace.folder == tmp_path / "timm-resnet18" / "mae-w4a6" / "tensorrt-rtx"
    assert workspace.engine == workspace.folder / "model.engine"
    assert [path.name for path in workspace.folder.iterdir()] == ["run.log"]


@pytest.mark.parametrize(
    ("asked", "name"),
    [({}, "auto-w8a8"), ({"seed": 1}, "auto-w8a8-seed1"), ({"num_samples": 64}, "auto-w8a8-n64"),
     ({"seed": 2, "num_samples": 8, "precision": "fp32"}, "auto-w8a8-seed2-n8-fp32")],
)  # fmt: skip
def test_another_seed_number_of_images_or_precision_is_another_run(
    tmp_path: Path, asked: dict[str, object], name: str
) -> None:
    recipe = Recipe.model_validate({"model": "m", **asked})
    assert run_folder(tmp_path, recipe, "cpu") == tmp_path / "m" / name / "cpu"


def link_to_nothing(path: Path) -> None:
    path.unlink()
    path.symlink_to("/nowhere/run.json")


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_text('{"stages": '),
        lambda path: path.write_text("[]"),
        lambda path: path.write_bytes(b"\xff\xfe"),
        lambda path: path.write_text('{"format": 1, "stages": {"export": {"seed": 3}}}'),
        lambda path: path.write_text('{"stages": ' + "[" * 5000 + "]" * 5000 + "}"),
        lambda path: path.write_text('{"format": ' + "9" * 5000 + "}"),
        *(link_to_nothing, pipe, folder),
    ],
    ids=["half a file", "a list", "no text", "half a record", "deep", "digits", "link", "pipe", "folder"],
)  # fmt: skip
def test_records_that_are_not_ours_are_one_line(
    work: Work, spoil: Callable[[Path], object]
) -> None:
    spoil(records(work))
    with pytest.raises(RecordError, match=r"run\.json: ") as caught:
        work.stage.run(work)
    assert str(caught.value).isprintable()
    assert work.calls == 1


def test_records_are_read_in_the_order_of_the_road(tmp_path: Path) -> None:
    workspace = open_workspace(tmp_path, Recipe(model="m"), "t")
    for name, path in (("build", workspace.engine), ("calibrate", workspace.scales)):
        Stage(name, "", 0, {}, [path]).run(lambda path=path: path.write_text("x"))  # type: ignore[misc]
    assert list(stage_records(workspace)) == ["calibrate", "build"]


@pytest.mark.parametrize("root", ["under a file", "/proc/reptrt"])
def test_a_workspace_that_cannot_be_written_is_said_in_one_line(
    tiny: TinyProject, tmp_path: Path, root: str
) -> None:
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "build" if root == "under a file" else Path(root)
    outcome = reptrt("engine", *tiny.options, "--workspace", folder)
    assert outcome.code == 2
    (line,) = outcome.complaints
    assert line.startswith(f"reptrt: {folder}")
    assert line.endswith("choose another --workspace")


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_planted_log_is_not_followed(tmp_path: Path, kind: str) -> None:
    log = open_workspace(tmp_path / "build", Recipe(model="m"), "t").log
    log.unlink()
    log.symlink_to(tmp_path / "outside") if kind == "link" else os.mkfifo(log)
    with pytest.raises(WriteError, match="and no file"):
        open_workspace(tmp_path / "build", Recipe(model="m"), "t")
    assert not (tmp_path / "outside").exists()
