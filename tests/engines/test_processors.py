"""Threads follow what the process may use, and those that wait leave the core to others."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from reptrt.engines.processors import PASSIVE, available_processors, cgroup_quota


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.mark.parametrize(
    ("own", "files", "quota"),
    [
        ("0::/", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/", {"cpu.max": "max 100000\n"}, None),
        ("0::/a/b", {"a/cpu.max": "100000 50000", "a/b/cpu.max": "max 100000"}, 2.0),
        ("0::/a/b", {"a/cpu.max": "400000 100000", "a/b/cpu.max": "300000 100000"}, 3.0),
        ("4:cpu,cpuacct:/a", {"cpu/a/cpu.cfs_quota_us": "50000\n", "cpu/a/cpu.cfs_period_us": "100000\n"}, 0.5),
        ("4:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("4:memory:/", {"cpu.max": "100000 100000"}, None),
        ("not a line", {"cpu.max": "garbage"}, None),
    ],
)  # fmt: skip
def test_quota_is_the_least_of_all_levels(tmp_path, own, files, quota):
    cgroups, groups = write(tmp_path / "cgroups", files), tmp_path / "own"
    groups.write_text(own)
    assert cgroup_quota(cgroups, groups) == quota


def test_without_control_groups_there_is_no_quota(tmp_path):
    assert cgroup_quota(tmp_path / "none", tmp_path / "none") is None


def test_affinity_bounds_the_processors():
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert available_processors() == 1
    finally:
        os.sched_setaffinity(0, before)


def test_importing_reptrt_lets_waiting_threads_sleep_unless_the_user_says_otherwise():
    code = f"import os, reptrt; print([os.environ[name] for name in {list(PASSIVE)}])"
    clean = {name: value for name, value in os.environ.items() if name not in PASSIVE}
    for stated, expected in ({}, "['PASSIVE', '0']"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "['ACTIVE', '0']"):  # fmt: skip
        run = [sys.executable, "-c", code]
        found = subprocess.run(run, env=clean | stated, capture_output=True, text=True, check=True)
        assert found.stdout.strip() == expected
