"""How a number is written for a reader: fixed digits, a true minus sign, a unit, "–" for none."""

from __future__ import annotations

import math

MISSING = "–"
_SPACE = "\N{NO-BREAK SPACE}"
_SECONDS_PER_MINUTE = 60
_MINUTES_PER_HOUR = 60


def number(value: float | None, digits: int = 1, unit: str = "", sign: bool = False) -> str:
    """Write `value` with `digits` decimals; None and NaN are "–", infinities "∞".

    Args:
        value: What to write.
        digits: Decimals; a value that rounds to zero has no sign.
        unit: Set behind a space that does not break.
        sign: Write "+" before positive values.
    """
    if value is None or math.isnan(value):
        return MISSING
    text = "∞" if math.isinf(value) else f"{abs(value):,.{digits}f}".replace(",", _SPACE)
    if math.isinf(value) or round(value, digits) != 0:
        text = ("−" if value < 0 else "+" if sign else "") + text
    return f"{text}{_SPACE}{unit}" if unit else text


def significant(value: float | None, digits: int = 3) -> str:
    """Write `value` with `digits` significant digits, such as "0.00243" or "1.2e-06"."""
    return number(value) if value is None or not math.isfinite(value) else f"{value:.{digits}g}"


def percent(value: float | None) -> str:
    """Write a share of 0..100."""
    return number(value, 2, "%")


def decibel(value: float | None) -> str:
    """Write a signal to noise ratio in dB."""
    return number(value, 1, "dB")


def milliseconds(value: float | None) -> str:
    """Write a latency in milliseconds with about three significant digits."""
    if value is None or not math.isfinite(value):
        return number(value)
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    return number(value, digits, "ms")


def file_size(value: float | None) -> str:
    """Write a size in bytes as kB or MB (powers of ten)."""
    if value is None or not math.isfinite(value):
        return number(value)
    if value < 1e6:
        return number(value / 1e3, 1, "kB")
    return number(value / 1e6, 1 if value < 1e8 else 0, "MB")


def duration(value: float | None) -> str:
    """Write seconds as "0.42 s", "12.3 s", "3 min 20 s" or "1 h 02 min"."""
    if value is None or not math.isfinite(value):
        return number(value)
    if round(value, 1) < _SECONDS_PER_MINUTE:
        return number(value, 2 if value < 1 else 1, "s")
    minutes, seconds = divmod(round(value), _SECONDS_PER_MINUTE)
    if minutes < _MINUTES_PER_HOUR:
        return f"{minutes}{_SPACE}min {seconds:02d}{_SPACE}s".replace(" ", _SPACE)
    hours, minutes = divmod(minutes, _MINUTES_PER_HOUR)
    return f"{hours}{_SPACE}h {minutes:02d}{_SPACE}min".replace(" ", _SPACE)


def ratio(before: float | None, after: float | None, better: str, worse: str) -> str:
    """Write how many times smaller `after` is than `before`, such as "3.6× faster"."""
    if not before or not after or not math.isfinite(before) or not math.isfinite(after):
        return MISSING
    factor = before / after
    if round(max(factor, 1 / factor), 2) == 1:
        return "the same"
    return f"{factor:.2f}× {better}" if factor > 1 else f"{1 / factor:.2f}× {worse}"
