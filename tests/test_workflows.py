"""CI: its workflows are valid, with few rights, of make targets that exist; its script is honest."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = {path.stem: path for path in sorted((ROOT / ".github" / "workflows").glob("*.yml"))}
TARGETS = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)

each_workflow = pytest.mark.parametrize("name", WORKFLOWS)


def read(name: str) -> dict[Any, Any]:
    content: dict[Any, Any] = yaml.safe_load(WORKFLOWS[name].read_text())
    return content


def steps(name: str) -> list[dict[str, Any]]:
    return [step for job in read(name)["jobs"].values() for step in job["steps"]]


def make_targets(name: str) -> list[str]:
    runs = "\n".join(step.get("run", "") for step in steps(name))
    calls = re.findall(r"^make (.+)$", runs, re.MULTILINE)
    return [word for call in calls for word in re.sub(r'\w+=("[^"]*"|\S*)', "", call).split()]


@each_workflow
def test_a_workflow_has_few_rights_an_end_and_one_run_at_a_time(name: str) -> None:
    content = read(name)
    assert content["name"] == name
    assert content["permissions"] == {"contents": "read"}
    assert content["concurrency"]["cancel-in-progress"] is True
    assert content["jobs"]
    assert all(job["timeout-minutes"] <= 120 for job in content["jobs"].values())


@each_workflow
def test_every_action_is_pinned_by_its_digest(name: str) -> None:
    actions = [step["uses"] for step in steps(name) if "uses" in step]
    assert actions
    assert [one for one in actions if not re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}", one)] == []


@each_workflow
def test_every_make_target_exists(name: str) -> None:
    called = make_targets(name)
    assert called
    assert set(called) <= {*TARGETS, ".venv/.installed"}


@each_workflow
def test_reports_are_kept_when_a_step_fails(name: str) -> None:
    (upload,) = [step for step in steps(name) if "upload-artifact" in step.get("uses", "")]
    assert upload["if"] in ("always()", "success() || failure()")
    assert "report.json" in upload["with"]["path"]


def test_the_gpu_workflow_regresses_and_tests_on_machines_with_a_gpu() -> None:
    (job,) = read("gpu-regression")["jobs"].values()
    assert job["runs-on"] == ["self-hosted", "gpu"]
    assert {"regress", "gpu-test"} <= set(make_targets("gpu-regression"))


def test_the_code_of_a_fork_never_reaches_a_machine_of_ours() -> None:
    content = read("gpu-regression")
    (job,) = content["jobs"].values()
    own = "github.event.pull_request.head.repo.full_name == github.repository"
    triggers = content[True]  # YAML 1.1 reads the key `on` so
    assert "pull_request_target" not in triggers
    assert f"github.event_name != 'pull_request' || ({own} &&" in job["if"]


def test_what_is_kept_is_what_regress_writes() -> None:
    (upload,) = [step for step in steps("gpu-regression") if "upload" in step.get("uses", "")]
    kept = {Path(line).name for line in upload["with"]["path"].split()}
    assert kept == {
        *("summary.md", "results.json"),
        *("recipe.yaml", "report.json", "report.html", "run.log"),
    }


@pytest.mark.parametrize("status", [0, 3])
def test_ci_leaves_with_the_status_of_the_tests_whatever_printing_the_versions_does(
    status: int, tmp_path: Path
) -> None:
    script, make = tmp_path / ".ci" / "run", tmp_path / "bin" / "make"
    for path, text in (
        (script, (ROOT / ".ci" / "run").read_text()),
        (make, f'#!/bin/sh\ncase "$1" in --version) exit 9 ;; esac\nexit {status}\n'),
    ):
        path.parent.mkdir()
        path.write_text(text)
        path.chmod(0o755)
    environment = {**os.environ, "PATH": f"{make.parent}:{os.environ['PATH']}"}
    done = subprocess.run([script], env=environment, capture_output=True, check=False)
    assert done.returncode == status
