"""A full disk for one file: its temporary file becomes a link to /dev/full."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from reptrt.engines import artifacts


def fill_disk_for(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let the next write of a file called `name` find the disk full; later ones find room."""
    partial_file = artifacts.partial_file
    full = [name]

    @contextmanager
    def link(path: Path) -> Iterator[Path]:
        with partial_file(path) as temporary:
            if path.name in full:
                full.remove(path.name)
                temporary.unlink()
                temporary.symlink_to("/dev/full")
            yield temporary

    monkeypatch.setattr(artifacts, "partial_file", link)
