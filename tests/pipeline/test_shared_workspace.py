"""Two processes in one workspace, and a disk or folder that takes no more."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

from tests.command_line import TinyProject, reptrt
from tests.full_disk import fill_disk_for

HOLDER = """
import fcntl, sys, time

with open(sys.argv[1], "a") as log:
    fcntl.flock(log, fcntl.LOCK_EX)
    print("held", flush=True)
    time.sleep(0.5)
"""

PAIR = """
import os, sys

import reptrt.pipeline.stages  # what takes seconds to import, once for both
from reptrt.pipeline.cli.main import main

sys.argv[0] = "reptrt"
children = []
for _ in range(2):
    child = os.fork()
    if child == 0:
        main()
        os._exit(0)
    children.append(child)
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""


def forget_engine(files: Path) -> None:
    for name in ("model.engine", "fusion.json"):
        (files / name).unlink()


def test_a_command_waits_for_the_process_that_works_in_its_workspace(
    tiny: TinyProject, workspace: Path
) -> None:
    files = tiny.files_of(workspace)
    command = [sys.executable, "-c", HOLDER, str(files / "run.log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        outcome = reptrt("build", *tiny.options, "--workspace", workspace)
        assert holder.poll() is not None or holder.wait(timeout=5) == 0
    assert outcome.code == 0
    assert outcome.complaints[0] == f"another process works there, waiting for it: {files}"


@pytest.mark.slow
def test_two_processes_in_one_workspace_build_once_and_agree(
    tiny: TinyProject, workspace: Path, finished: Path
) -> None:
    files = tiny.files_of(workspace)
    forget_engine(files)
    before = (files / "run.log").read_text()
    environment = {**os.environ, "PYTHONPATH": f"{Path.cwd()}:{tiny.folder}"}
    command = [sys.executable, "-c", PAIR, "build", *tiny.options, "--workspace", str(workspace)]
    pair = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert pair.returncode == 0, pair.stderr
    log = (files / "run.log").read_text().removeprefix(before)
    assert log.count("build: started") == log.count("build: fresh, skipped") == 1
    names = {path.name for path in files.iterdir()}
    assert names == {path.name for path in tiny.files_of(finished).iterdir()}


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(
    tiny: TinyProject, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = tiny.files_of(workspace)
    forget_engine(files)
    fill_disk_for(monkeypatch, "model.engine")
    outcome = reptrt("build", *tiny.options, "--workspace", workspace)
    assert outcome.code == 2
    path = files / "model.engine"
    assert outcome.complaints == [f"reptrt: {path}: cannot be written: the disk is full"]
    assert not path.exists()
    assert not list(files.glob(".*"))
    assert reptrt("build", *tiny.options, "--workspace", workspace).code == 0
    assert path.exists()


def _open_full(handler: logging.FileHandler) -> IO[str]:
    return Path("/dev/full").open("a")


def test_a_log_on_a_full_disk_stops_nothing(
    tiny: TinyProject, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.FileHandler, "_open", _open_full)
    outcome = reptrt("build", *tiny.options, "--workspace", workspace)
    assert (outcome.code, "Traceback" in outcome.err) == (0, False)
