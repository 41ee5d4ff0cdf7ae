"""Where training scripts put the weights in what they save: averaged ones first, then by name, one level down.

Evaluated are the averaged weights, so they are looked for first, under every name, before the last step's.
A dict under another name is taken where it is the only one that holds tensors, optimizer states aside.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Generic, NamedTuple, TypeVar

Leaf = TypeVar("Leaf")

_AVERAGED = re.compile(r"(^|_)(ema|averaged|swa|teacher)(_|$)")
_PLAIN = (
    "state_dict", "model_state_dict", "model", "net", "network", "params", "weights", "module",
    "state", "student",
)  # fmt: skip
_NOT_WEIGHTS = re.compile(r"optim|sched|scaler|loops|callbacks|criterion|loss|metric|hyper|rng")


class AmbiguousStatesError(ValueError):
    """Several dicts of tensors, none under a name that says that it is the network's."""


class State(NamedTuple, Generic[Leaf]):
    """A state dict and the keys that lead to it; no key for the whole of what was saved."""

    keys: tuple[str, ...]
    tensors: Mapping[str, Leaf]


def find_state(
    content: Mapping[str, object], tensors_of: Callable[[object], Mapping[str, Leaf]]
) -> State[Leaf] | None:
    """The weights in `content`; None where nothing holds tensors.

    Args:
        content: what was saved.
        tensors_of: the tensors that a value holds itself, by name; none where it is no state dict.

    Raises:
        AmbiguousStatesError: on one line, what was found.
    """
    states = list(_states(content, tensors_of))
    if not states:
        tensors = tensors_of(content)
        return State((), tensors) if tensors else None
    known = [state for state in states if _rank(state.keys) is not None]
    if known:
        return min(known, key=lambda state: _rank(state.keys) or (0, 0, 0))
    tensors = tensors_of(content)
    if tensors:
        return State((), tensors)
    if len(states) == 1:
        return states[0]
    found = ", ".join(f"{'.'.join(s.keys)} ({len(s.tensors)} tensors)" for s in states[:8])
    raise AmbiguousStatesError(
        f"holds several state dicts: {found}; save the one that is meant alone"
    )


def is_averaged(name: str) -> bool:
    """Whether a key or a prefix says that what it names is averaged over training steps."""
    return any(_AVERAGED.search(part) for part in name.split("."))


def _states(
    content: Mapping[str, object], tensors_of: Callable[[object], Mapping[str, Leaf]]
) -> Iterator[State[Leaf]]:
    for key, value in content.items():
        if _NOT_WEIGHTS.search(key.lower()):
            continue
        tensors = tensors_of(value)
        if tensors:
            yield State((key,), tensors)
            continue
        if isinstance(value, Mapping):
            for inner, nested in value.items():
                own = tensors_of(nested) if not _NOT_WEIGHTS.search(str(inner).lower()) else {}
                if own:
                    yield State((key, str(inner)), own)


def _rank(keys: tuple[str, ...]) -> tuple[int, int, int] | None:
    """Order of preference, the least first: averaged, then as `_PLAIN` says, then the shallowest."""
    places = [_PLAIN.index(key) if key in _PLAIN else None for key in keys]
    averaged = any(is_averaged(key) for key in keys)
    if not averaged and any(place is None for place in places):
        return None
    return (0 if averaged else 1, min((p for p in places if p is not None), default=0), len(keys))
