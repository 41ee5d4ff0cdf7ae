"""An object store as the workspace of a sweep, played by fsspec's `file` store."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from reptrt.engines.artifacts import WriteError
from reptrt.engines.target import MissingComponentError
from reptrt.pipeline.sweep import store as module
from reptrt.pipeline.sweep.store import Store
from tests.command_line import TinyProject, reptrt


def everything(path: str) -> bool:
    return True


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "store").mkdir()
    return Store(f"file://{tmp_path}/store")


def files_of(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_what_is_sent_is_what_another_node_fetches(store: Store, tmp_path: Path) -> None:
    write(tmp_path / "a" / "runs" / "x" / "run.json", "{}")
    write(tmp_path / "a" / "runs" / "x" / ".model.0123456789abcdef.partial", "half")
    write(tmp_path / "a" / "runs" / "x" / "scales.json.lock", "")
    write(tmp_path / "a" / "cells" / "y" / "result.json", "1")
    store.send(tmp_path / "a")
    Store(store.url).fetch(tmp_path / "b", lambda path: path.startswith("runs/"))
    assert files_of(tmp_path / "b") == {"runs/x/run.json": "{}"}
    Store(store.url).fetch(tmp_path / "c", everything)
    assert files_of(tmp_path / "c") == {"runs/x/run.json": "{}", "cells/y/result.json": "1"}


def test_only_what_has_changed_is_sent_and_records_come_last(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("run.json", "a.bin", "z.bin", "result.json"):
        write(tmp_path / "a" / name, name)
    sent: list[str] = []
    real = store._system.put_file
    monkeypatch.setattr(
        store._system,
        "put_file",
        lambda own, there: (sent.append(Path(own).name), real(own, there)),
    )
    store.send(tmp_path / "a")
    assert sent == ["a.bin", "z.bin", "result.json", "run.json"]
    sent.clear()
    write(tmp_path / "a" / "z.bin", "another length")
    store.send(tmp_path / "a")
    assert sent == ["z.bin"]
    store.fetch(tmp_path / "b", everything)
    sent.clear()
    store.send(tmp_path / "b")
    assert sent == []  # what was fetched is there already


def test_a_file_that_arrives_in_part_has_not_its_name(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def put_half(own: str, there: str) -> None:
        Path(there).write_text(Path(own).read_text()[:2])
        raise KeyboardInterrupt

    write(tmp_path / "a" / "block-1", "whole")
    monkeypatch.setattr(store._system, "put_file", put_half)
    with pytest.raises(KeyboardInterrupt):
        store.send(tmp_path / "a")
    assert "block-1" not in files_of(tmp_path / "store")
    # A process that is killed there leaves this behind, which nobody fetches.
    write(tmp_path / "store" / ".block-1.0123456789abcdef.partial", "wh")
    store.fetch(tmp_path / "b", everything)
    assert not (tmp_path / "b").exists()


def test_what_is_finished_is_sent_while_the_cell_runs(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SEND_SECONDS", 0.01)
    arrived = threading.Event()
    real = store.send

    def send(folder: Path) -> None:
        real(folder)
        if (tmp_path / "store" / "block").exists():
            arrived.set()

    monkeypatch.setattr(store, "send", send)
    with store.sending(tmp_path / "a"):
        write(tmp_path / "a" / "block", "1")
        assert arrived.wait(10)
        write(tmp_path / "a" / "last", "2")
    assert files_of(tmp_path / "store") == {"block": "1", "last": "2"}


def test_a_name_outside_of_the_store_is_refused(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = store._root
    monkeypatch.setattr(store._system, "find", lambda path: [f"{root}/../x", f"{root}/y"])
    with pytest.raises(WriteError, match=r"names a file outside of itself: \.\./x"):
        store.fetch(tmp_path / "a", everything)
    assert not (tmp_path / "x").exists()


def test_a_store_that_does_not_answer_is_one_line(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no credentials\nfor you")

    monkeypatch.setattr(store._system, "find", refuse)
    monkeypatch.setattr(store._system, "put_file", refuse)
    with pytest.raises(WriteError, match="the store does not answer: no credentials for you"):
        store.fetch(tmp_path / "a", everything)
    write(tmp_path / "a" / "x", "1")
    with pytest.raises(WriteError, match="the store does not answer"):
        store.send(tmp_path / "a")


def test_an_unknown_kind_of_store_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(MissingComponentError, match=r"nowhere://x: .*; install fsspec's package"):
        Store("nowhere://x")
    write(tmp_path / "sweep.yaml", "grid: {model: repvgg_a0}")
    outcome = reptrt("sweep", tmp_path / "sweep.yaml", "--workspace", "nowhere://x")
    assert outcome.code == 4
    assert len(outcome.complaints) == 1


def test_a_sweep_in_a_store_goes_on_at_its_last_finished_stage(
    tiny: TinyProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path.cwd()), str(tiny.folder)]))
    write(
        tmp_path / "sweep.yaml",
        f"base: {{model: '{tiny.model}', evaluation: {tiny.photos}, image_size: [32, 32], target: cpu}}\n"
        f"grid: {{calibrator: [minmax], data: [{tiny.data}]}}\n",
    )
    store = tmp_path / "store"
    command = ("sweep", tmp_path / "sweep.yaml", "--workspace", f"file://{store}", "--json")
    (row,) = json.loads(reptrt(*command).out)
    assert row["status"] == "done"
    assert row["folder"].startswith(f"file://{store}/runs/")
    assert "1 done" in (store / "sweep.html").read_text()
    planned = reptrt(*command, "--dry-run")
    assert [one["state"] for one in json.loads(planned.out)["cells"]] == ["done"]
    # A node that was lost behind calibration has left this.
    (run,) = store.glob("runs/*/*/minmax-*/*/run.json")
    records = json.loads(run.read_text())
    behind = ("validate", "report")
    first = {name: value for name, value in records["stages"].items() if name not in behind}
    run.write_text(json.dumps({**records, "stages": first}))
    for gone in ("report.json", "result.json", "validation.json"):
        next(store.rglob(gone)).unlink()
    (again,) = json.loads(reptrt(*command).out)
    assert again["accuracy"] == row["accuracy"]
    records = json.loads(run.read_text())["stages"]
    assert "validate" in records
    # What took its time once stands as it was: nothing of it was made again.
    assert {name: records[name] for name in first} == first
    assert "calibrate" in first
