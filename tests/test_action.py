"""The GitHub action runs what it is told, and says how it ended."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import yaml

ACTION = yaml.safe_load((Path(__file__).parents[1] / "action.yml").read_text())


@pytest.mark.parametrize(
    ("arguments", "code"),
    [("engine m --max-drop 1", 0), ("engine m", 1), ("regress", 3), ("lint m", 1)],
)
def test_the_step_keeps_the_exit_code_and_writes_the_summary(
    tmp_path: Path, arguments: str, code: int
) -> None:
    (script,) = [step["run"] for step in ACTION["runs"]["steps"] if step.get("name") == "reptrt"]
    program = tmp_path / "reptrt" / "bin" / "reptrt"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\necho "first line"\necho "$@"\nexit {code}\n')
    program.chmod(0o755)
    summary = tmp_path / "summary.md"
    done = subprocess.run(
        ["bash", "-e", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "RUNNER_TEMP": str(tmp_path), "ARGUMENTS": arguments, "WORKSPACE": "build",
             "GITHUB_STEP_SUMMARY": str(summary)},
    )  # fmt: skip
    assert done.returncode == code
    junit = " --junit build/junit.xml" if arguments.startswith("engine") else ""
    assert f"{arguments}{junit} --workspace build" in done.stdout
    assert ("::error title=reptrt::left with" in done.stdout) == (code != 0)
    assert summary.exists() == (not arguments.startswith("regress"))


def test_what_is_said_on_stderr_alone_is_the_annotation(tmp_path: Path) -> None:
    program = tmp_path / "reptrt" / "bin" / "reptrt"
    program.parent.mkdir(parents=True)
    program.write_text(
        "#!/bin/sh\necho '[0:00] export: started' >&2\necho 'reptrt: no such file' >&2\nexit 2\n"
    )
    program.chmod(0o755)
    (script,) = [step["run"] for step in ACTION["runs"]["steps"] if step.get("name") == "reptrt"]
    done = subprocess.run(
        ["bash", "-e", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "RUNNER_TEMP": str(tmp_path), "ARGUMENTS": "engine m", "WORKSPACE": "build",
             "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md")},
    )  # fmt: skip
    assert done.returncode == 2
    assert "::error title=reptrt::left with 2: reptrt: no such file" in done.stdout


def test_every_input_is_said_and_every_action_pinned() -> None:
    assert all(one["description"] for one in ACTION["inputs"].values())
    used = [step["uses"] for step in ACTION["runs"]["steps"] if "uses" in step]
    assert all(len(one.partition("@")[2]) == 40 for one in used)
