"""The data sheet of what the user names: a target, or a file in which TensorRT describes a GPU."""

from __future__ import annotations

from pathlib import Path

from reptrt.engines.cost.device_info import read_device_info
from reptrt.engines.cost.estimate import CostError
from reptrt.engines.data_sheet import DataSheet
from reptrt.engines.target import TARGETS, Target


def choose_sheet(target: Target | None, device_info: Path | None) -> DataSheet:
    """Return the data sheet of `device_info`, else of `target`.

    Raises:
        CostError: neither says which GPU it is.
    """
    if device_info is not None:
        return read_device_info(device_info)
    if target is not None and target.data_sheet is not None:
        return target.data_sheet
    known = ", ".join(name for name, one in TARGETS.items() if one.data_sheet is not None)
    named = f"target '{target.name}' names no GPU" if target is not None else "no GPU is named"
    raise CostError(f"{named}: give `device_info=FILE`, or as `target` one of {known}")
