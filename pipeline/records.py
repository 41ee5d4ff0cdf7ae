"""Read back a record that a stage, a run or a kit has written as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")


class RecordError(ValueError):
    """The file is not what this version of reptrt writes there."""

    exit_code = 2


def read_record(path: Path, record: type[T]) -> T:
    """Content of `path` as a `record`, such as `reptrt.engines.report_schema.Report`.

    Values have the record's types or are refused; keys that it does not know are left out.

    Raises:
        RecordError: the file is missing, no JSON, or lacks a key or has a value of another type.
    """
    try:
        return TypeAdapter(record).validate_json(path.read_bytes(), strict=True)
    except OSError as error:
        raise RecordError(f"{path}: cannot be read ({error.strerror})") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        reason = " ".join(f"{place}: {first['msg']}".removeprefix(": ").split())
        raise RecordError(
            f"{path}: is not what this version of reptrt writes there ({reason}); make it again"
        ) from None
