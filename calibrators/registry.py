"""Calibrators by the name that the command line uses."""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module

from calibrators.base import Calibrator

_CALIBRATORS: dict[str, type[Calibrator]] = {}
_MODULES = ("calibrators.best_baseline", "calibrators.baselines")


class UnknownCalibratorError(ValueError):
    """No calibrator has this name."""

    exit_code = 2


def register_calibrator(calibrator: type[Calibrator]) -> type[Calibrator]:
    """Class decorator: make `calibrator` known under its `name`."""
    _CALIBRATORS[calibrator.name] = calibrator
    return calibrator


def list_calibrators() -> dict[str, type[Calibrator]]:
    """Every calibrator by name, in the order of registration."""
    for module in _MODULES:
        import_module(module)
    return dict(_CALIBRATORS)


def create_calibrator(name: str) -> Calibrator:
    """Calibrator with this name.

    Raises:
        UnknownCalibratorError: the message lists the legal names.
    """
    known = list_calibrators()
    if name not in known:
        close = get_close_matches(name, known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UnknownCalibratorError(
            f"calibrator {name!r} is unknown: choose from {', '.join(known)}{hint}"
        )
    return known[name]()
