"""Read back a record that a stage, a run or a kit has written as JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TypeVar

from reptrt.engines.foreign.border import explain, read_bytes, reading
from reptrt.engines.foreign.limits import MAX_SIDECAR_BYTES
from reptrt.engines.foreign.text import visible
from reptrt.models.read_fields import read_fields

T = TypeVar("T")


class RecordError(ValueError):
    """The file is not what this version of reptrt writes there."""

    exit_code = 2


def read_record(path: Path, record: type[T], remedy: str = "remove it, and make it again") -> T:
    """Content of `path` as a `record`, such as `reptrt.engines.report_schema.Report`.

    Values have the record's types and ranges or are refused; keys that it does not know are left out.

    Args:
        path: JSON file.
        record: dataclass or model of pydantic.
        remedy: what a user is told to do about another file.

    Raises:
        RecordError: the file is missing, no JSON, or lacks a key or has a value of another type or
            range, such as NaN.
    """
    with reading(path, RecordError, "cannot be read"):
        content = read_bytes(path, MAX_SIDECAR_BYTES, RecordError)
    try:
        found = read_fields(content, record)
        json.loads(content, parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError) as error:
        raise RecordError(
            f"{visible(str(path))}: is not what this version of reptrt writes there ({explain(error)});"
            f" {remedy}"
        ) from None
    return found


def _finite(text: str) -> float:
    """A number as JSON has it; what we write has null for one that is not finite."""
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text[:20]} is no finite number")
    return value
