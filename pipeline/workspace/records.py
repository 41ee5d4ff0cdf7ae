"""Read back a record that a stage, a run or a kit has written as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from reptrt.engines.foreign.border import read_bytes, reading
from reptrt.engines.foreign.limits import MAX_SIDECAR_BYTES
from reptrt.engines.foreign.text import one_line, visible

T = TypeVar("T")


class RecordError(ValueError):
    """The file is not what this version of reptrt writes there."""

    exit_code = 2


def read_record(path: Path, record: type[T], remedy: str = "make it again") -> T:
    """Content of `path` as a `record`, such as `reptrt.engines.report_schema.Report`.

    Values have the record's types or are refused; keys that it does not know are left out.

    Args:
        path: JSON file.
        record: dataclass or model of pydantic.
        remedy: what a user is told to do about another file.

    Raises:
        RecordError: the file is missing, no JSON, or lacks a key or has a value of another type.
    """
    with reading(path, RecordError, "cannot be read"):
        content = read_bytes(path, MAX_SIDECAR_BYTES, RecordError)
    try:
        return TypeAdapter(record).validate_json(content, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        reason = one_line(f"{place}: {first['msg']}".removeprefix(": "))
        raise RecordError(
            f"{visible(str(path))}: is not what this version of reptrt writes there ({reason}); {remedy}"
        ) from None
