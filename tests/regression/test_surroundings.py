"""Machines that lack something: memory, a home, an entry in the password file, locks, room, a clock that goes on.

Each run works, or ends with one line and exit code 2.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.command_line import TinyProject, complaints_in

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not os.environ.get("REPTRT_REGRESSION"), reason="minutes of work: `make regress` runs it"
    ),
]

GIB = 1 << 30
NOBODY = 54321
"""A number that has no entry in the password file."""
NO_LOCKS = """
import fcntl

def flock(*arguments):
    raise OSError(37, "No locks available")

fcntl.flock = flock
"""


def run(
    tiny: TinyProject, workspace: Path, *prefix: str, env: Mapping[str, str | None] | None = None
) -> tuple[int, list[str]]:
    """Exit code and complaints of `reptrt engine` in a process of its own, started by `prefix`."""
    known: dict[str, str | None] = {**os.environ, **(env or {})}
    paths = [str(Path.cwd()), str(tiny.folder), known.get("PYTHONPATH") or ""]
    known["PYTHONPATH"] = os.pathsep.join(paths)
    command = [
        *prefix, sys.executable, "-m", "reptrt", "engine", tiny.model, "--image-size", "32",
        "--data", str(tiny.data), "--eval", str(tiny.photos), "--calibrator", "minmax",
        "--quantize", "all", "--target", "cpu", "--workspace", str(workspace),
    ]  # fmt: skip
    done = subprocess.run(
        command, check=False, capture_output=True, text=True,
        env={key: value for key, value in known.items() if value is not None},
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, complaints_in(done.stderr)


def limited(num_bytes: int) -> tuple[str, ...]:
    return ("sh", "-c", f'ulimit -v {num_bytes >> 10}; exec "$@"', "sh")


def test_four_gibibytes_of_addresses_are_enough_for_a_small_network(
    tiny: TinyProject, tmp_path: Path
) -> None:
    assert run(tiny, tmp_path / "build", *limited(4 * GIB))[0] == 0


@pytest.mark.parametrize("num_bytes", [GIB, 2 * GIB])
def test_too_little_memory_is_one_line(tiny: TinyProject, tmp_path: Path, num_bytes: int) -> None:
    code, complaints = run(tiny, tmp_path / "build", *limited(num_bytes))
    assert code == 2
    (line,) = complaints
    assert "there is not enough memory for this" in line


@pytest.mark.parametrize(
    "env",
    [{"HOME": "/proc"}, {"HOME": "/nonexistent/home"}, {"TMPDIR": "/nonexistent"}],
    ids=["read-only home", "no such home", "no such TMPDIR"],
)
def test_homes_and_temporary_folders_that_take_nothing(
    tiny: TinyProject, tmp_path: Path, env: Mapping[str, str]
) -> None:
    assert run(tiny, tmp_path / "build", env=env)[0] == 0


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_neither_home_nor_password_entry(tiny: TinyProject, tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents[:2], tiny.folder, *tiny.folder.parents[:2]):
        folder.chmod(0o777)
    who = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    assert run(tiny, tmp_path / "build", *who, env={"HOME": None})[0] == 0


def test_a_file_system_without_locks(tiny: TinyProject, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(NO_LOCKS)
    for _ in range(2):
        code, complaints = run(tiny, tmp_path / "build", env={"PYTHONPATH": str(tmp_path)})
        assert code == 0, complaints


def test_a_clock_that_was_set_back(tiny: TinyProject, tmp_path: Path) -> None:
    assert run(tiny, tmp_path / "build")[0] == 0
    files = [path for path in (tmp_path / "build").rglob("*") if path.is_file()]
    engine = next(path for path in files if path.name == "model.cpu.onnx")
    before = engine.stat().st_ino
    for path in files:
        os.utime(path, (4_000_000_000, 4_000_000_000))
    assert run(tiny, tmp_path / "build")[0] == 0
    assert engine.stat().st_ino == before  # nothing is made anew, for nothing has changed


@pytest.mark.parametrize("folder", ["/proc/build", "/dev/full/build"])
def test_a_workspace_that_takes_nothing_is_one_line(tiny: TinyProject, folder: str) -> None:
    code, complaints = run(tiny, Path(folder))
    assert code == 2
    (line,) = complaints
    assert "cannot be written" in line
