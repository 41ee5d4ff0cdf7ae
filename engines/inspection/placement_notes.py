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


def write_reasons(reasons: Mapping[str, str], proto: onnx.ModelProto) -> None:
    """Put layer -> why it stays float into the metadata of `proto`, in place."""
    _write(proto, _REASONS, dict(reasons))


def read_reasons(proto: onnx.ModelProto) -> dict[str, str]:
    """Layer -> why it stays float; empty for files of other tools."""
    found: dict[str, str] = json.loads(_read(proto).get(_REASONS, "{}"))
    return found


def write_islands(islands: Sequence[OperatorIsland], proto: onnx.ModelProto) -> None:
    """Put the islands into the metadata of `proto`, in place."""
    _write(proto, _ISLANDS, [asdict(island) for island in islands])


def read_islands(proto: onnx.ModelProto) -> list[OperatorIsland]:
    """The islands of a file; none in files of other tools."""
    return [
        OperatorIsland(
            **{**values, "nodes": tuple(values["nodes"]), "op_types": tuple(values["op_types"])}
        )
        for values in json.loads(_read(proto).get(_ISLANDS, "[]"))
    ]


def _write(proto: onnx.ModelProto, key: str, value: object) -> None:
    entry = proto.metadata_props.add()
    entry.key, entry.value = key, json.dumps(value)


def _read(proto: onnx.ModelProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in proto.metadata_props}
