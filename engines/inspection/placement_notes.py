"""Why layers stay float, and which nodes are islands: written by export, read by who reports.

They travel in the metadata of the ONNX file, as JSON, so that a report needs the file alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

import onnx

_REASONS, _ISLANDS = "reptrt.float_layers", "reptrt.islands"


class OperatorIsland(TypedDict):
    """Nodes that stay as they are in the user's file, in float.

    `role` is "tail" where they sort, select or decide behind the last layers, else "island";
    `weight_bytes` is what they hold.
    """

    nodes: list[str]
    op_types: list[str]
    role: str
    reason: str
    weight_bytes: int


def write_reasons(reasons: Mapping[str, str], proto: onnx.ModelProto) -> None:
    """Put layer -> why it stays float into the metadata of `proto`, in place."""
    _write(proto, _REASONS, dict(reasons))


def read_reasons(path: Path) -> dict[str, str]:
    """Layer -> why it stays float; empty for files of other tools."""
    found: dict[str, str] = json.loads(_read(path).get(_REASONS, "{}"))
    return found


def write_islands(islands: Sequence[OperatorIsland], proto: onnx.ModelProto) -> None:
    """Put the islands into the metadata of `proto`, in place."""
    _write(proto, _ISLANDS, list(islands))


def read_islands(path: Path) -> list[OperatorIsland]:
    """The islands of a file; none in files of other tools."""
    found: list[OperatorIsland] = json.loads(_read(path).get(_ISLANDS, "[]"))
    return found


def _write(proto: onnx.ModelProto, key: str, value: object) -> None:
    entry = proto.metadata_props.add()
    entry.key, entry.value = key, json.dumps(value)


def _read(path: Path) -> dict[str, str]:
    proto = onnx.load(path, load_external_data=False)
    return {entry.key: entry.value for entry in proto.metadata_props}
