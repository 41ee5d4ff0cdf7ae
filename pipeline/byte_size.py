"""A number of bytes that people write, as 4GiB, 512MiB or 4096."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator, ByteSize, Field
from pydantic_core import PydanticCustomError

MOST = 1 << 62
_SIZE = re.compile(r"\d{,30}\.?\d{1,30}\s*[A-Za-z]*")


def _whole_size(value: object) -> object:
    """Refuse what pydantic would read in part, such as `1,5GB` as one byte, and what has no end."""
    is_size = not isinstance(value, int | float) or abs(value) <= MOST
    if isinstance(value, str):
        is_size = _SIZE.fullmatch(value.strip()) is not None
    if not is_size:
        raise PydanticCustomError("byte_size", "not a size")
    return value


Bytes = Annotated[ByteSize, BeforeValidator(_whole_size), Field(le=MOST)]
"""A number of bytes, with or without a unit."""
