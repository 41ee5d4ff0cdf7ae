from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def engine_command(*variables: str) -> str:
    lines = make("--dry-run", "engine", *variables).stdout.splitlines()
    return next(" ".join(line.split()) for line in lines if "/reptrt engine" in line)


def test_plain_make_prints_the_help():
    assert make().stdout == make("help").stdout
    assert "make engine" in make().stdout


def test_variables_that_are_not_set_become_no_flags():
    assert engine_command() == '.venv/bin/reptrt engine "yolov6n_demo" --workspace "build"'


def test_variables_that_are_set_become_flags():
    command = engine_command("MODEL=repvgg_a0", "WEIGHTS=my file.pt", "BITS=4", "TARGET=tensorrt")
    assert command == (
        '.venv/bin/reptrt engine "repvgg_a0" --weights "my file.pt" --target tensorrt'
        ' --weight-bits 4 --activation-bits 4 --workspace "build"'
    )


def test_regress_runs_the_baselines_and_then_the_claims():
    lines = make(
        "--dry-run", "regress", "TARGET=tensorrt", "ARGS=--device cuda"
    ).stdout.splitlines()
    baselines, claims = lines[-2:]
    assert baselines.split("/", 2)[2] == (
        'reptrt regress --target tensorrt --workspace "build" --device cuda'
    )
    assert claims.startswith("REPTRT_REGRESSION=1 ")
    assert claims.endswith("-rs tests/regression")


def test_an_old_python_is_refused_in_one_line_before_anything_is_made(tmp_path: Path):
    old = tmp_path / "python3.9"
    pretend = "import sys; sys.version_info = (3, 9, 1); exec(sys.argv[2])"
    old.write_text(f"#!/bin/sh\nexec '{sys.executable}' -c '{pretend}' \"$@\"\n")
    old.chmod(0o755)
    refused = make("engine", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}")
    assert refused.returncode == 2
    assert f"reptrt needs Python 3.10 or newer, and {old} is 3.9" in refused.stderr
    assert not (tmp_path / "venv").exists()
