from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from reptrt.engines.artifacts import (
    WriteError,
    cache_folder,
    file_sha256,
    make_folder_once,
    replace_when_done,
    system_refusal,
    write_json,
)
from tests.full_disk import fill_disk_for


def test_a_file_appears_whole_and_no_temporary_one_stays(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "engine.bin"
    with replace_when_done(path) as temporary:
        temporary.write_bytes(b"half")
        assert not path.exists()
        assert temporary.parent == path.parent
    assert path.read_bytes() == b"half"
    assert list(path.parent.iterdir()) == [path]


def write_half(path: Path, error: type[BaseException]) -> None:
    with replace_when_done(path) as temporary:
        temporary.write_bytes(b"ne")
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_fails_halfway_keeps_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "engine.bin"
    path.write_bytes(b"old")
    with pytest.raises(error):
        write_half(path, error)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_run_left_is_gone_after_the_next_write(tmp_path: Path) -> None:
    path = tmp_path / "engine.bin"
    with replace_when_done(path) as temporary:
        temporary.write_bytes(b"first")
    temporary.write_bytes(b"what kill -9 left")
    with replace_when_done(path) as temporary:
        temporary.write_bytes(b"second")
    assert path.read_bytes() == b"second"
    assert list(tmp_path.iterdir()) == [path]


def test_a_block_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), replace_when_done(tmp_path / "engine.bin"):
        pass


def test_a_full_disk_is_one_line_and_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "fusion.json"
    path.write_text("old")
    fill_disk_for(monkeypatch, "fusion.json")
    with pytest.raises(WriteError) as caught:
        write_json({"a": 1}, path)
    assert str(caught.value) == f"{path}: cannot be written: the disk is full"
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("number", "reason"),
    [(errno.EROFS, "read-only"), (errno.EDQUOT, "quota"), (errno.EACCES, "no permission")],
)
def test_a_folder_that_takes_no_file_is_one_line(tmp_path, monkeypatch, number, reason) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(WriteError, match=reason) as caught:
        write_json({}, tmp_path / "a.json")
    assert caught.value.exit_code == 2


LIMITED = """
import resource, sys
from pathlib import Path
import numpy as np
from safetensors.numpy import save_file
from reptrt.engines.artifacts import WriteError, replace_when_done

resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    with replace_when_done(Path(sys.argv[1])) as temporary:
        save_file({"a": np.zeros(10000)}, temporary)
except WriteError as error:
    sys.exit(f"one line: {error}")
"""


def test_what_the_system_refuses_a_library_in_rust_is_one_line_too(tmp_path: Path) -> None:
    path = tmp_path / "calibration.safetensors"
    command = [sys.executable, "-c", LIMITED, str(path)]
    root = Path(__file__).parents[2]
    outcome = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert outcome.stderr.startswith(f"one line: {path}: cannot be written: the file would be")
    assert not path.exists()


def test_another_error_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(ConnectionResetError), replace_when_done(tmp_path / "a"):
        raise ConnectionResetError(errno.ECONNRESET, "reset")


def test_json_is_strict_and_takes_numpy_paths_and_tuples(tmp_path: Path) -> None:
    content = {
        "nan": float("nan"),
        "infinite": [float("inf"), np.float32("-inf")],
        "numpy": (np.int64(3), np.array([0.5, np.nan])),
        "path": Path("a/b"),
        7: True,
    }
    write_json(content, tmp_path / "x.json")
    text = (tmp_path / "x.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {
        "nan": None,
        "infinite": [None, None],
        "numpy": [3, [0.5, None]],
        "path": "a/b",
        "7": True,
    }
    assert text.endswith("}\n")


def test_what_is_no_json_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="set"):
        write_json({"a": {1, 2}}, tmp_path / "x.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [0, 3, (1 << 20) + 1])
def test_the_hash_of_a_file_is_that_of_its_bytes(tmp_path: Path, size: int) -> None:
    content = b"\x07" * size
    (tmp_path / "f").write_bytes(content)
    assert file_sha256(tmp_path / "f") == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_an_artifact_may_be_read_by_whom_the_umask_lets(
    tmp_path: Path, umask: int, mode: int
) -> None:
    def write_for_the_owner(path: Path) -> None:
        path.write_text("x")
        path.chmod(0o600)

    before = os.umask(umask)
    try:
        with replace_when_done(tmp_path / "calibration.safetensors") as temporary:
            write_for_the_owner(temporary)
    finally:
        os.umask(before)
    assert (tmp_path / "calibration.safetensors").stat().st_mode & 0o777 == mode


def test_what_a_kill_left_of_a_folder_goes_when_it_is_made(tmp_path: Path) -> None:
    (tmp_path / ".scenes.0123456789abcdef.partial" / "images").mkdir(parents=True)
    make_folder_once(
        tmp_path / "scenes",
        (tmp_path / "scenes").exists,
        lambda folder: (folder / "a").touch(),
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == [".scenes.lock", "scenes"]
    assert [path.name for path in (tmp_path / "scenes").iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (OSError(errno.EROFS, "Read-only file system", "/x/y"), "/x/y: the system refuses it"),
        (FileNotFoundError(2, "No usable temporary directory found in ['/tmp']"), "set TMPDIR"),
        (RuntimeError("SaveModel: write failed: No space left on device"), "the disk is full"),
    ],
)
def test_what_the_system_refuses_outside_of_any_writer_is_one_line(
    error: Exception, line: str
) -> None:
    assert line in str(system_refusal(error))
    assert system_refusal(KeyError("a")) is None


def test_a_user_without_a_home_gets_a_cache_that_nobody_else_has_put_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    usual = cache_folder()
    assert (usual.parent, usual.stat().st_mode & 0o777) == (tmp_path, 0o700)
    assert cache_folder() == usual
    usual.rmdir()
    (tmp_path / "elsewhere").mkdir()
    usual.symlink_to("elsewhere")
    assert cache_folder().parent == tmp_path
    assert cache_folder() != usual
    usual.unlink()
    usual.mkdir()
    usual.chmod(0o777)
    assert cache_folder() != usual
