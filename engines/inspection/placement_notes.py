"""Why layers stay float, and which nodes are islands: written by export, read by who reports.

They travel in the metadata of the ONNX file, as JSON, so that a report needs the file alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import onnx

from reptrt.engines.report_schema import OperatorIsland

_REASONS, _ISLANDS = "reptrt.float_layers", "reptrt.islands"


class NotesError(ValueError):
    """The metadata of an ONNX file has our keys, and not what export writes there."""

    exit_code = 2


def write_reasons(reasons: Mapping[str, str], proto: onnx.ModelProto) -> None:
    """Put layer -> why it stays float into the metadata of `proto`, in place."""
    _write(proto, _REASONS, dict(reasons))


def read_reasons(proto: onnx.ModelProto) -> dict[str, str]:
    """Layer -> why it stays float; empty for files of other tools.

    Raises:
        ValueError: its metadata says something else there.
    """
    found = _read(proto, _REASONS, {})
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        raise ValueError(f"its metadata {_REASONS!r} names no reasons")
    return found


def write_islands(islands: Sequence[OperatorIsland], proto: onnx.ModelProto) -> None:
    """Put the islands into the metadata of `proto`, in place."""
    _write(proto, _ISLANDS, [asdict(island) for island in islands])


def read_islands(proto: onnx.ModelProto) -> list[OperatorIsland]:
    """The islands of a file; none in files of other tools.

    Raises:
        ValueError: its metadata says something else there.
    """
    try:
        return [_island(**values) for values in _read(proto, _ISLANDS, [])]  # type: ignore[attr-defined]
    except TypeError:
        raise ValueError(f"its metadata {_ISLANDS!r} names no islands") from None


def _island(
    nodes: object, op_types: object, role: object, reason: object, weight_bytes: object = 0
) -> OperatorIsland:
    """An island as JSON has it; a value of another type is a TypeError."""
    role, reason = _texts([role, reason])
    if type(weight_bytes) is not int:
        raise TypeError
    return OperatorIsland(_texts(nodes), _texts(op_types), role, reason, weight_bytes)


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise TypeError
    return tuple(value)


def _write(proto: onnx.ModelProto, key: str, value: object) -> None:
    entry = proto.metadata_props.add()
    entry.key, entry.value = key, json.dumps(value)


def _read(proto: onnx.ModelProto, key: str, default: object) -> object:
    """What the metadata of `proto` has under `key`, decoded."""
    values = {entry.key: entry.value for entry in proto.metadata_props}
    try:
        return json.loads(values[key]) if key in values else default
    except (ValueError, RecursionError):
        raise ValueError(f"its metadata {key!r} is no JSON") from None
