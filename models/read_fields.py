"""JSON as a record: whoever reads one back gets values of the record's types, or one line."""

from __future__ import annotations

from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from reptrt.engines.foreign.text import one_line

T = TypeVar("T")


def read_fields(text: str | bytes, record: type[T]) -> T:
    """`text` as a `record`: a dataclass, a model of pydantic, or a type such as `dict[str, int]`.

    Values have the record's types, as JSON writes them; keys that it does not know are left out.

    Raises:
        ValueError: it is something else; says on one line where.
    """
    try:
        return TypeAdapter(record).validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ValueError(one_line(f"{place}: {first['msg']}".removeprefix(": "))) from None
