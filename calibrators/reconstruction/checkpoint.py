"""Finished blocks on disk, from which a stopped run goes on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from reptrt.calibrators.base import BlockFit
from reptrt.calibrators.quantized.quantized_model import QuantizedModel
from reptrt.calibrators.state import CalibrationFileError, restore_tensors, save_tensors


def save_block(model: QuantizedModel, names: Sequence[str], fit: BlockFit, path: Path) -> None:
    """Write the tensors `names` of `model` and how they were found, under a temporary name first.

    Raises:
        CalibrationFileError: the disk refuses.
    """
    temporary = path.with_suffix(".tmp")
    metadata = {"fit": json.dumps(asdict(fit))}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(save_tensors(model, names), temporary, metadata=metadata)
        temporary.replace(path)
    except (SafetensorError, OSError) as error:
        temporary.unlink(missing_ok=True)
        raise CalibrationFileError(
            f"{path}: a finished block cannot be saved: {error}; make room and run the same command "
            "again, which goes on behind the blocks saved so far"
        ) from None


def load_block(model: QuantizedModel, names: Sequence[str], path: Path) -> BlockFit | None:
    """Read what `save_block` wrote into `model`; None where `path` does not exist.

    Raises:
        CalibrationFileError: damaged, or of another block.
    """
    if not path.exists():
        return None
    state = model.graph_module.state_dict()
    try:
        with safe_open(path, framework="pt") as file:
            fit = BlockFit(**json.loads((file.metadata() or {})["fit"]))
            tensors = {name: file.get_tensor(name) for name in names}
        if any(tensors[name].shape != state[name].shape for name in names):
            raise ValueError("it is of another block")
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise CalibrationFileError(
            f"{path}: cannot be read: {error}; delete it to calibrate this block again"
        ) from None
    restore_tensors(model, tensors)
    return fit
