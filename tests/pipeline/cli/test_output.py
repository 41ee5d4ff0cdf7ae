"""Terminals of other encodings, and readers that leave before the end."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest

from reptrt.pipeline.cli.console import NOBODY_READS
from reptrt.pipeline.cli.main import main


def test_what_an_encoding_lacks_is_shown_as_question_marks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    monkeypatch.setattr(sys, "argv", ["reptrt", "lint", "--help"])
    main()
    sys.stdout.write("a → b\n")
    sys.stdout.flush()
    assert written.getvalue().endswith(b"a ? b\n")


@pytest.mark.parametrize("command", [["targets"], ["targets", "--json"]])
def test_a_reader_that_has_left_ends_a_command_as_sigpipe_does(command: list[str]) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "reptrt", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait() == NOBODY_READS
        assert process.stderr is not None
        assert process.stderr.read() == b""
