from __future__ import annotations

import fcntl
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from reptrt.engines.file_lock import hold_lock, hold_passing_lock

ROOT = Path(__file__).parents[2]
HOLDER = """
import sys, time
from pathlib import Path
from reptrt.engines.file_lock import hold_lock

with hold_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def holder(path: Path, seconds: float) -> subprocess.Popen[str]:
    """A process that holds `path` by the time this returns."""
    command = [sys.executable, "-c", HOLDER, str(path), str(seconds)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_free_lock_is_held_at_once_and_keeps_what_is_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.log"
    path.write_text("text")
    waits: list[str] = []
    with hold_lock(path, lambda: waits.append("wait")):
        pass
    assert waits == []
    assert path.read_text() == "text"


def test_the_second_process_waits_for_the_first_and_says_so(tmp_path: Path) -> None:
    first = holder(tmp_path / "lock", 0.3)
    waits: list[str] = []
    with hold_lock(tmp_path / "lock", lambda: waits.append("wait")):
        assert first.wait(timeout=10) == 0
    assert waits == ["wait"]


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    first = holder(tmp_path / "lock", 60)
    first.send_signal(signal.SIGKILL)
    first.wait(timeout=10)
    with hold_lock(tmp_path / "lock", lambda: pytest.fail("still held")):
        pass


def test_a_process_that_inherits_the_lock_holds_it_too(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with hold_lock(path) as lock:
        child = subprocess.Popen(["sleep", "60"], pass_fds=(lock,))
    try:
        with path.open() as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        child.kill()
        child.wait()
    with hold_lock(path, lambda: pytest.fail("still held")):
        pass


def test_a_passing_lock_is_held_by_one_at_a_time_and_leaves_no_file(tmp_path: Path) -> None:
    path, inside, most = tmp_path / "lock", [0], [0]

    def work(_: int) -> None:
        with hold_passing_lock(path):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.001)
            inside[0] -= 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(200)))
    assert most == [1]
    assert list(tmp_path.iterdir()) == []


def test_a_passing_lock_that_a_killed_process_left_is_free_and_goes(tmp_path: Path) -> None:
    first = holder(tmp_path / "lock", 60)
    first.send_signal(signal.SIGKILL)
    first.wait(timeout=10)
    with hold_passing_lock(tmp_path / "lock", lambda: pytest.fail("still held")):
        assert (tmp_path / "lock").exists()
    assert not (tmp_path / "lock").exists()
