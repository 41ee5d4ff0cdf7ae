"""Calibrators by the name that the command line uses."""

from __future__ import annotations

from importlib import import_module

from reptrt.calibrators.base import DEFAULT_SETTINGS, Calibrator
from reptrt.calibrators.names import MODULES, require_one_of
from reptrt.calibrators.settings import Settings

_CALIBRATORS: dict[str, type[Calibrator]] = {}


def register_calibrator(calibrator: type[Calibrator]) -> type[Calibrator]:
    """Class decorator: make `calibrator` known under its `name`, which `MODULES` must hold."""
    assert MODULES[calibrator.name] == calibrator.__module__
    _CALIBRATORS[calibrator.name] = calibrator
    return calibrator


def list_calibrators() -> dict[str, type[Calibrator]]:
    """Every calibrator by name, in the order of `MODULES`."""
    for module in dict.fromkeys(MODULES.values()):
        import_module(module)
    return {name: _CALIBRATORS[name] for name in MODULES}


def create_calibrator(name: str, settings: Settings = DEFAULT_SETTINGS) -> Calibrator:
    """Calibrator with this name (not `auto`); those that do not learn ignore `settings`.

    Raises:
        UnknownCalibratorError: the message lists the legal names.
    """
    require_one_of(name, list(MODULES))
    return list_calibrators()[name](settings)
