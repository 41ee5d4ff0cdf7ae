"""How text from others is shown: in messages, tables, pages, logs and configurations.

A name in a file may hold terminal sequences, line breaks, marks that turn the direction of writing, or
half a character. Shown, it is one line of visible characters.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping

_MAX_LINE = 160
_MAX_PART = 100


def one_line(value: object, limit: int = _MAX_LINE) -> str:
    """Return `value` as visible text on one line, cut to `limit` characters, for a message."""
    try:
        text = str(value) if isinstance(value, str | BaseException) else _repr(value)
    except Exception:  # repr of a foreign object, or of a number with too many digits
        text = f"a {type(value).__name__}"
    if isinstance(value, BaseException) and not text.strip():
        text = type(value).__name__
    line = " ".join(text[: 64 * limit].split())
    return visible(line if len(line) <= limit else f"{line[: limit - 3]}...")


def visible(text: str) -> str:
    """Return `text` with `?` for every character that is not shown as itself; always one line."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char == "\u00a0" else "?" for char in text)


def visible_tree(value: object) -> object:
    """Copy JSON-like `value` with every text in it, keys too, made `visible`."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, Mapping):
        return {visible_tree(key): visible_tree(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [visible_tree(item) for item in value]
    return value


def path_part(name: str) -> str:
    """Return `name` as one part of a path: letters, digits and `._-`; it begins with none of these."""
    part = re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip(".-")[:_MAX_PART].rstrip(".")
    return part or "model"


def _repr(value: object) -> str:
    short = reprlib.Repr()
    short.maxstring = short.maxother = _MAX_LINE
    return short.repr(value)
