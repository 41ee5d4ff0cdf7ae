"""Ranges of the numbers in records, for whoever reads one back: an edited file is refused, not shown.

Standard library only: build kits carry the records, and write their report where there is no pydantic.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

_ROUNDING = 1e-6


class Checked(ABC):
    """What stands in `Annotated` beside a type, and is checked behind it where pydantic reads the record."""

    @abstractmethod
    def require(self, value: Any) -> Any:
        """Return `value`.

        Raises:
            ValueError: it is not legal.
        """

    def __get_pydantic_core_schema__(
        self, source: object, handler: Callable[[object], Any]
    ) -> dict[str, Any]:
        """The type's own check, then `require`: the form that pydantic asks annotations for."""
        check = {"type": "no-info", "function": self.require}
        return {"type": "function-after", "function": check, "schema": handler(source)}


@dataclass(frozen=True)
class Between(Checked):
    """A finite number from `low` to `high`, but for rounding."""

    low: float = -math.inf
    high: float = math.inf

    def require(self, value: Any) -> Any:
        """Return `value`; see `Checked`."""
        inside = self.low - _ROUNDING <= value <= self.high + _ROUNDING
        if not inside or abs(value) == math.inf:
            most = "" if math.isinf(self.high) else f" and at most {self.high:g}"
            raise ValueError(f"must be at least {self.low:g}{most}")
        return value


@dataclass(frozen=True)
class NotEmpty(Checked):
    """At least one item."""

    def require(self, value: Any) -> Any:
        """Return `value`; see `Checked`."""
        if not value:
            raise ValueError("must not be empty")
        return value


Percent = Annotated[float, Between(0, 100)]
Amount = Annotated[float, Between(0)]
Count = Annotated[int, Between(0, 1 << 63)]
Cosine = Annotated[float, Between(-1, 1)]
