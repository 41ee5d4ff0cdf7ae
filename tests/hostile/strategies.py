"""What hostile files hold: numbers, names, JSON, YAML and damage, as hypothesis draws them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

from tests.hostile.limited import PLANTED

NUMBERS = st.one_of(
    st.integers(-3, 300),
    st.sampled_from([10**400, 10**4200, 1 << 31, 1 << 62, (1 << 63) - 1, -1]),
    st.floats(),
)
NAMES = st.one_of(
    st.sampled_from(
        [PLANTED, "", "..", "../x", "/etc/passwd", "a/b", "\x00", "x" * 5000, "\u2028"]
    ),
    st.text(max_size=8),
)
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, NAMES)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(NAMES, inner, max_size=4)),
    max_leaves=8,
)


@st.composite
def documents(draw: st.DrawFn, like: object) -> object:
    """JSON like `like`, in which some values are others, missing, or beside new ones."""
    return draw(_changed(like))


def _changed(value: object) -> st.SearchStrategy[object]:
    same = st.just(value)
    if isinstance(value, dict) and value:
        parts = st.fixed_dictionaries({}, optional={k: _changed(v) for k, v in value.items()})
        whole = st.fixed_dictionaries({k: _changed(v) for k, v in value.items()})
        return st.one_of(whole, whole, whole, parts, VALUES)
    if isinstance(value, list) and value:
        items = st.tuples(*map(_changed, value)).map(list)
        return st.one_of(items, items, items, st.lists(_changed(value[0]), max_size=3), VALUES)
    return st.one_of(same, same, same, same, LEAVES, VALUES)


def json_text(value: object) -> str:
    """`value` as JSON; numbers of thousands of digits too, which Python does not print."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(k)}:{json_text(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(json_text, value)) + "]"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**4000:
        return "9" * 5000
    return json.dumps(value)


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """`content` cut off, or with some bits turned, or with a piece twice or replaced."""
    end = max(0, len(content) - 1)
    at = draw(st.integers(0, end))
    kind = draw(st.sampled_from(["cut", "bits", "head", "piece", "noise", "whole"]))
    if kind == "cut":
        return content[:at]
    if kind == "piece":
        other = draw(st.integers(0, end))
        return content[:at] + content[other : other + draw(st.integers(0, 200))] + content[at:]
    if kind == "noise":
        return content[:at] + draw(st.binary(max_size=40)) + content[at + 8 :]
    changed = bytearray(content)
    for _ in range(draw(st.sampled_from([1, 4, 32])) if kind != "whole" else 0):
        position = draw(st.integers(0, min(end, 400) if kind == "head" else end))
        changed[position : position + 1] = bytes([draw(st.integers(0, 255))])
    return bytes(changed)


@st.composite
def nested(draw: st.DrawFn, deepest: int = 2000) -> str:
    """JSON or YAML that is nested deep."""
    depth = draw(st.sampled_from([10, deepest // 2, deepest]))
    opening, closing = draw(st.sampled_from([("[", "]"), ('{"a":', "}"), ("[[", "]]"), ("- ", "")]))
    return opening * depth + closing * draw(st.sampled_from([0, depth]))


@st.composite
def slightly_changed(draw: st.DrawFn, like: object) -> object:
    """A copy of JSON-like `like` with one to three values replaced or left out, the rest as it is."""
    copied = json.loads(json.dumps(like))
    for _ in range(draw(st.integers(1, 3))):
        owner, key = draw(st.sampled_from(list(_places(copied))))
        if isinstance(owner, dict) and draw(st.integers(0, 4)) == 0:
            del owner[key]
        else:
            owner[key] = draw(st.one_of(LEAVES, LEAVES, VALUES))
    return copied


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (dict or list, key) in `value`; the first is a place of no meaning, so that there is one."""
    yield {"": None}, ""
    pending = [value]
    while pending:
        here = pending.pop()
        keys = list(here) if isinstance(here, dict) else range(len(here))
        for key in keys if isinstance(here, dict | list) else ():
            yield here, key
            if isinstance(here[key], dict | list):
                pending.append(here[key])
