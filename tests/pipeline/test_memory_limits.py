"""`--max-memory` decides where activations wait, and nothing else: any size gives the same, a bad one is one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.command_line import TinyProject, reptrt

LEARNED = ("--calibrator", "repapq", "--effort", "high", "--reconstruction", "iterations=2")


def calibrated(tiny: TinyProject, workspace: Path, size: str) -> bytes:
    outcome = reptrt(
        "calibrate", *tiny.options, *LEARNED, "--max-memory", size, "--workspace", workspace
    )
    assert outcome.code == 0, outcome.err
    (file,) = workspace.rglob("calibration.safetensors")
    return file.read_bytes()


@pytest.fixture(scope="module")
def usual(tiny: TinyProject, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return calibrated(tiny, tmp_path_factory.mktemp("usual"), "2GiB")


@pytest.mark.parametrize("size", ["0", "1", "0.5kB", "4GiB", "4611686018427387904"])
def test_any_limit_gives_the_same_calibration(
    tiny: TinyProject, usual: bytes, tmp_path: Path, size: str
) -> None:
    assert calibrated(tiny, tmp_path, size) == usual


@pytest.mark.parametrize(
    "size", ["-1", "-1GiB", "nan", "inf", "1e30", "9" * 40, "4 gigs", "", "1,5GB"]
)
def test_what_is_no_size_is_one_line_before_anything_runs(
    tiny: TinyProject, tmp_path: Path, size: str
) -> None:
    outcome = reptrt("engine", *tiny.options, f"--max-memory={size}", "--workspace", tmp_path / "b")
    assert outcome.code == 2
    (line,) = outcome.complaints
    assert "max-memory" in line.replace("_", "-")
    assert not (tmp_path / "b").exists()
