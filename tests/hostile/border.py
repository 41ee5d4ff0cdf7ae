"""A border at which files of others come in: what may be in the file, and who reads it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.hostile.limited import MANY, bounded, read_or_refuse
from tests.hostile.strategies import damaged, documents, json_text, nested, slightly_changed


@dataclass(frozen=True)
class Border:
    """A kind of file.

    Attributes:
        file: its name.
        contents: what is written into it.
        read: called with its path.
    """

    file: str
    contents: st.SearchStrategy[bytes]
    read: Callable[[Path], object]

    def check(self, folder: Path, count: int) -> None:
        """Read `count` inputs, each in one line, a minute and two gigabytes; nothing else is written."""
        path = folder / self.file
        path.parent.mkdir(parents=True, exist_ok=True)
        accepted: list[int] = []

        @settings(
            max_examples=count, deadline=None, database=None, derandomize=True,
            suppress_health_check=list(HealthCheck), phases=[Phase.generate],
        )  # fmt: skip
        @given(self.contents)
        def run(content: bytes) -> None:
            path.write_bytes(content)
            outcome = read_or_refuse(lambda: self.read(path))
            accepted.append(outcome.accepted)
            if fault := outcome.fault:
                kept = path.with_name(f"{path.name}.fault")
                kept.write_bytes(content)
                pytest.fail(f"{fault} (input: {kept})", pytrace=False)

        with bounded(folder):
            run()
        # Of a few inputs, chance may refuse them all.
        assert any(accepted) or count < MANY, "every input was refused: nothing else was tried"


def encoded(texts: st.SearchStrategy[str]) -> st.SearchStrategy[bytes]:
    """Texts as bytes; half characters too."""
    return texts.map(lambda text: text.encode("utf-8", "surrogatepass"))


def json_like(like: object, deepest: int = 2000) -> st.SearchStrategy[bytes]:
    """JSON like `like`: slightly or much changed, damaged, or nested deep."""
    whole = json.dumps(like).encode()
    slightly = encoded(slightly_changed(like).map(json_text))
    much = encoded(documents(like).map(json_text))
    return st.one_of(slightly, slightly, slightly, much, damaged(whole), encoded(nested(deepest)))
