"""Finished blocks on disk, from which a stopped run goes on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from reptrt.calibrators.base import BlockFit
from reptrt.calibrators.quantized.quantized_model import QuantizedModel
from reptrt.calibrators.state import (
    CalibrationFileError,
    require_legal_steps,
    restore_tensors,
    save_tensors,
)
from reptrt.engines.artifacts import replace_when_done
from reptrt.engines.foreign.border import explain, reading, require_file
from reptrt.models.read_fields import read_fields

_AGAIN = "cannot be read; delete it to calibrate this block again"


def save_block(model: QuantizedModel, names: Sequence[str], fit: BlockFit, path: Path) -> None:
    """Write the tensors `names` of `model` and how they were found, whole or not at all.

    Raises:
        CalibrationFileError: the disk refuses.
    """
    metadata = {"fit": json.dumps(asdict(fit))}
    try:
        with replace_when_done(path) as temporary:
            save_file(save_tensors(model, names), temporary, metadata=metadata)
    except (SafetensorError, OSError) as error:
        raise CalibrationFileError(
            f"{path}: a finished block cannot be saved: {explain(error)}; make room and run the same"
            " command again, which goes on behind the blocks saved so far"
        ) from None


def load_block(model: QuantizedModel, names: Sequence[str], path: Path) -> BlockFit | None:
    """Read what `save_block` wrote into `model`; None where `path` does not exist.

    Raises:
        CalibrationFileError: damaged, or of another block.
    """
    if not path.exists():
        return None
    state = model.graph_module.state_dict()
    with reading(path, CalibrationFileError, _AGAIN):
        require_file(path, CalibrationFileError)
        with safe_open(path, framework="pt") as file:
            fit = read_fields((file.metadata() or {})["fit"], BlockFit)
            tensors = {name: file.get_tensor(name) for name in names}
        if any(_kind(tensors[name]) != _kind(state[name]) for name in names):
            raise ValueError("it is of another block")
        if not all(tensor.isfinite().all() for tensor in tensors.values()):
            raise ValueError("it holds NaN or infinity")
    restore_tensors(model, tensors)
    require_legal_steps(model, path)
    return fit


def _kind(tensor: torch.Tensor) -> tuple[torch.Size, torch.dtype]:
    return tensor.shape, tensor.dtype
