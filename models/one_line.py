"""Foreign text on one line that a terminal can show."""

from __future__ import annotations

import reprlib


def one_line(value: object) -> str:
    """Return `value` as printable text on one line, cut to 160 characters, for a message."""
    text = str(value) if isinstance(value, str | Exception) else reprlib.repr(value)
    return printable(" ".join(text.split())[:160])


def printable(text: str) -> str:
    """Return `text` with `?` for what no terminal shows: a file's names may hold anything."""
    return "".join(c if c.isprintable() else "?" for c in text)
