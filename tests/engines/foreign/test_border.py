from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import pytest

from reptrt.engines.foreign.border import read_bytes, read_json, reading


class BadFileError(ValueError):
    exit_code = 2


class OtherError(ValueError):
    exit_code = 4


@pytest.mark.parametrize(
    ("error", "reason"),
    [(RecursionError("x"), "nested too deep"), (MemoryError(), "more memory"),
     (OverflowError("x"), "too large"), (KeyError("a\nb"), "'a"), (ValueError("\x1b[2J"), "?"),
     (OSError(13, "Permission denied"), "Permission denied")],
)  # fmt: skip
def test_whatever_goes_wrong_is_the_readers_one_line(error: Exception, reason: str) -> None:
    with (
        pytest.raises(BadFileError, match=r"^f\.x: no thing: ") as caught,
        reading("f.x", BadFileError, "no thing"),
    ):
        raise error
    assert reason in str(caught.value)
    assert str(caught.value).isprintable()


def test_what_already_has_an_exit_code_passes_and_is_one_visible_line() -> None:
    with (
        pytest.raises(OtherError, match=r"^mis\?\[2J sing$"),
        reading("f", BadFileError, "no thing"),
    ):
        raise OtherError("mis\x1b[2J\nsing")


def test_an_interrupt_passes() -> None:
    with pytest.raises(KeyboardInterrupt), reading("f", BadFileError, "no thing"):
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("text", "reason"),
    [("[" * 100_000, "nested too deep"), ("9" * 5000, "not valid JSON"), ("{", ":1: not valid"),
     ("\udcff", "UTF-8")],
)  # fmt: skip
def test_json_that_python_cannot_read_is_one_line(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(BadFileError, match=reason):
        read_json(path, 1 << 20, BadFileError)


def test_only_files_are_read_and_no_more_of_them_than_the_limit(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(11))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadFileError, match="larger than"):
        read_bytes(tmp_path / "x", 10, BadFileError)
    with pytest.raises(BadFileError, match="is no file"):
        read_bytes(tmp_path / "pipe", 10, BadFileError)
    assert read_bytes(tmp_path / "x", 11, BadFileError) == bytes(11)


def test_a_small_file_takes_little_whatever_the_limit(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(1000))
    tracemalloc.start()
    try:
        assert len(read_bytes(tmp_path / "x", 64 << 20, BadFileError)) == 1000
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
