"""Calibrators by the name that the command line uses."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module

from reptrt.calibrators.base import DEFAULT_SETTINGS, Calibrator
from reptrt.calibrators.settings import Settings

AUTO = "auto"
"""Not a calibrator: `choose_calibrator` says what it stands for."""

_CALIBRATORS: dict[str, type[Calibrator]] = {}
_MODULES = (
    "reptrt.calibrators.reconstruction.across_block",
    "reptrt.calibrators.transformers.repquant",
    "reptrt.calibrators.transformers.repq_vit",
    "reptrt.calibrators.transformers.smoothquant",
    "reptrt.calibrators.closed_form",
    "reptrt.calibrators.histogram.best",
    "reptrt.calibrators.histogram.methods",
)


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


def require_calibrator(name: str) -> None:
    """Check that `name` is `auto` or a calibrator.

    Raises:
        UnknownCalibratorError: the message lists the legal names.
    """
    _require(name, [AUTO, *list_calibrators()])


def create_calibrator(name: str, settings: Settings = DEFAULT_SETTINGS) -> Calibrator:
    """Calibrator with this name (not `auto`); those that do not learn ignore `settings`.

    Raises:
        UnknownCalibratorError: the message lists the legal names.
    """
    known = list_calibrators()
    _require(name, list(known))
    return known[name](settings)


def _require(name: str, legal: Sequence[str]) -> None:
    if name not in legal:
        close = get_close_matches(name, legal, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UnknownCalibratorError(
            f"calibrator {name!r} is unknown: choose from {', '.join(legal)}{hint}"
        )
