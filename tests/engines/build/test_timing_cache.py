"""TensorRT's cache is opaque; the one here is a JSON object of timings, with the same methods."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from reptrt.engines.build.timing_cache import (
    attach_timings,
    cache_file,
    default_folder,
    keep_timings,
)
from reptrt.engines.device import Gpu
from tests.full_disk import fill_disk_for

ROOT = Path(__file__).parents[3]
L4 = Gpu("NVIDIA L4", (8, 9))

FAKE = '''
import json


class Cache:
    """An ITimingCache of a GPU called `device`."""

    def __init__(self, data, device="l4"):
        self.entries = json.loads(bytes(data) or b"{}")
        self.device = self.entries.setdefault("device", device)

    def combine(self, others, ignore_mismatch):
        if others.device != self.device and not ignore_mismatch:
            return False
        self.entries = {**others.entries, **self.entries}
        return True

    def serialize(self):
        return json.dumps(self.entries).encode()


class Config:
    """What a build leaves in an IBuilderConfig."""

    def __init__(self):
        self.cache = None

    def create_timing_cache(self, data):
        return Cache(data)

    def set_timing_cache(self, cache, ignore_mismatch):
        self.cache = cache
        return cache.device == "l4" or ignore_mismatch

    def get_timing_cache(self):
        return self.cache
'''

WRITER = f"""{FAKE}
import sys, time
from pathlib import Path
from reptrt.engines.build.timing_cache import attach_timings, keep_timings

name, path = sys.argv[1], Path(sys.argv[2])
for number in range(20):
    config = Config()
    attach_timings(config, path)
    config.cache.entries[f"{{name}}{{number}}"] = number
    time.sleep(0.002)
    keep_timings(config, path)
"""


@pytest.fixture
def config():
    namespace: dict[str, type] = {}
    exec(FAKE, namespace)
    return namespace["Config"]()


def entries(path: Path) -> dict[str, object]:
    loaded: dict[str, object] = json.loads(path.read_text())
    return {key: value for key, value in loaded.items() if key != "device"}


def test_the_file_is_named_after_gpu_and_version(tmp_path: Path) -> None:
    assert cache_file(tmp_path, L4, "10.16.1.11").name == (
        "nvidia-l4-sm89-tensorrt-10.16.1.11.cache"
    )


def test_timings_lie_in_the_users_cache_folder(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "reptrt" / "timings"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder() == tmp_path / ".cache" / "reptrt" / "timings"


def test_what_another_process_wrote_during_the_build_is_kept(config, tmp_path: Path) -> None:
    path = tmp_path / "new" / "l4.cache"
    attach_timings(config, path)
    config.cache.entries["mine"] = 1
    path.parent.mkdir()
    path.write_text('{"device": "l4", "theirs": 2}')
    keep_timings(config, path)
    assert entries(path) == {"mine": 1, "theirs": 2}


def test_timings_of_another_gpu_are_not_used_and_replaced(config, tmp_path: Path, caplog) -> None:
    path = tmp_path / "l4.cache"
    path.write_text('{"device": "t4", "slow": 9}')
    with caplog.at_level(logging.WARNING):
        attach_timings(config, path)
        config.cache.entries["mine"] = 1
        keep_timings(config, path)
    assert json.loads(path.read_text()) == {"device": "l4", "mine": 1}
    assert "another GPU or TensorRT" in caplog.messages[0]
    assert "replaced" in caplog.messages[1]


def test_two_processes_lose_no_timing(tmp_path: Path) -> None:
    path = tmp_path / "l4.cache"
    processes = [
        subprocess.Popen([sys.executable, "-c", WRITER, name, str(path)], cwd=ROOT)
        for name in ("a", "b")
    ]
    assert [process.wait(timeout=60) for process in processes] == [0, 0]
    expected = {f"{name}{number}" for name in ("a", "b") for number in range(20)}
    assert entries(path).keys() == expected
    assert {file.name for file in tmp_path.iterdir()} == {path.name, f".{path.name}.lock"}


@pytest.mark.parametrize("trouble", ["full disk", "a file in the way", "unreadable"])
def test_timings_that_cannot_be_kept_are_a_warning(
    config, tmp_path, caplog, monkeypatch, trouble
) -> None:
    path = tmp_path / "timings" / "l4.cache"
    if trouble == "a file in the way":
        path.parent.write_text("")
    else:
        path.parent.mkdir()
    if trouble == "full disk":
        fill_disk_for(monkeypatch, path.name)
    if trouble == "unreadable":
        path.mkdir()
    with caplog.at_level(logging.WARNING):
        attach_timings(config, path)
        keep_timings(config, path)
    assert "timings are not kept" in caplog.messages[-1]
    assert not path.is_file()
