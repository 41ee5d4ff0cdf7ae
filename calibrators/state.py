"""A calibrated model on disk: tensors as safetensors, and scales that a person can read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from reptrt.calibrators.base import CalibrationResult
from reptrt.calibrators.quantized.quantized_model import QuantizedModel
from reptrt.calibrators.quantized.quantizers import IntegerGrid, TensorQuantizer
from reptrt.engines.foreign.border import reading
from reptrt.models.read_fields import read_fields


class CalibrationFileError(ValueError):
    """The file does not hold the calibration of this model."""

    exit_code = 2


def save_calibration(model: QuantizedModel, path: Path, result: CalibrationResult) -> None:
    """Write every tensor of `model`, and the grids of its quantizers, to `path`.

    The same calibration gives the same bytes.

    Args:
        model: calibrated model.
        path: file to write; not atomic, so give a temporary name.
        result: what the calibrator says it did.
    """
    grids = {
        kind: {name: asdict(quantizer.grid) for name, quantizer in quantizers.items()}
        for kind, quantizers in _quantizers(model).items()
    }
    state = model.graph_module.state_dict(keep_vars=False)
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    untimed = replace(result, blocks=tuple(replace(fit, seconds=None) for fit in result.blocks))
    metadata = {"grids": json.dumps(grids), "result": json.dumps(asdict(untimed))}
    save_file(tensors, path, metadata=metadata)
    _sort_header(path)


def _sort_header(path: Path) -> None:
    """Write the header of a safetensors file in one order: safetensors draws that of metadata."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        content = text.encode()
        if len(content) > length:  # cannot be: it is the same content, as short as it can be
            raise CalibrationFileError(f"{path}: its header has an unknown form")
        file.seek(8)
        file.write(content.ljust(length))


def load_calibration(model: QuantizedModel, path: Path) -> CalibrationResult:
    """Read what `save_calibration` wrote into `model`; return the result.

    Raises:
        CalibrationFileError: damaged, or of another model.
    """
    with reading(path, CalibrationFileError, "is no calibration; calibrate again"):
        return _load(model, path)


def _load(model: QuantizedModel, path: Path) -> CalibrationResult:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CalibrationFileError(f"{path}: cannot be read: {error}; calibrate again") from None
    state = model.graph_module.state_dict()
    if set(tensors) != set(state) or any(tensors[k].shape != state[k].shape for k in state):
        raise CalibrationFileError(f"{path}: is of another model or placement; calibrate again")
    model.graph_module.load_state_dict(tensors)
    for kind, grids in read_fields(metadata["grids"], dict[str, dict[str, IntegerGrid]]).items():
        for name, grid in grids.items():
            if not grid.is_legal:
                raise CalibrationFileError(f"{path}: {name} has no legal codes; calibrate again")
            _quantizers(model)[kind][name].grid = grid
    require_legal_steps(model, path)
    return _parse_result(metadata["result"])


def save_tensors(model: QuantizedModel, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Copies, on the CPU, of these tensors of the state dict."""
    state = model.graph_module.state_dict()
    return {name: state[name].detach().cpu().contiguous().clone() for name in names}


def restore_tensors(model: QuantizedModel, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write `tensors` back into the state dict, in place."""
    state = model.graph_module.state_dict()
    for name, tensor in tensors.items():
        state[name].copy_(tensor)


def require_legal_steps(model: QuantizedModel, path: Path) -> None:
    """Refuse what `path` brought into `model` where a step is no number above 0.

    Raises:
        CalibrationFileError: there is one.
    """
    for quantizers in _quantizers(model).values():
        for name, quantizer in quantizers.items():
            if not quantizer.is_legal:
                raise CalibrationFileError(f"{path}: {name} has no legal step; calibrate again")


def read_result(path: Path) -> CalibrationResult:
    """What the calibrator said it did, without reading a tensor.

    Raises:
        CalibrationFileError: damaged.
    """
    with (
        reading(path, CalibrationFileError, "is no calibration; calibrate again"),
        safe_open(path, framework="pt") as file,
    ):
        return _parse_result((file.metadata() or {})["result"])


def readable_scales(model: QuantizedModel) -> dict[str, Any]:
    """Content of scales.json: per activation and per layer, in graph order."""
    points = {point.name: point for point in model.placement.points}
    layers = model.placement.layers
    activations = {
        name: {
            **_describe(quantizer),
            "tensors": list(points[name].tensors),
            "read_by": [layers.get(consumer, consumer) for _, consumer in points[name].edges],
        }
        for name, quantizer in model.activation_quantizers.items()
    }
    weights = {name: _describe(quantizer) for name, quantizer in model.weight_quantizers.items()}
    return {
        "activations": activations,
        "weights": weights,
        "float_layers": dict(model.placement.float_layers),
    }


def dump_scales(scales: dict[str, Any]) -> str:
    """JSON text with one line per quantizer."""
    sections = []
    for section, entries in scales.items():
        lines = [f"    {json.dumps(k)}: {json.dumps(v)}" for k, v in entries.items()]
        sections.append(f"  {json.dumps(section)}: {{\n" + ",\n".join(lines) + "\n  }")
    return "{\n" + ",\n".join(sections) + "\n}\n"


def _parse_result(text: str) -> CalibrationResult:
    return read_fields(text, CalibrationResult)


def _quantizers(model: QuantizedModel) -> dict[str, dict[str, TensorQuantizer]]:
    return {"activations": model.activation_quantizers, "weights": model.weight_quantizers}


def _describe(quantizer: TensorQuantizer) -> dict[str, Any]:
    scale = quantizer.scale.detach().cpu().to(torch.float64)
    rounded = [float(f"{value:.9g}") for value in scale.flatten().tolist()]
    zero_points = [int(value) for value in quantizer.zero_point.flatten().tolist()]
    described: dict[str, Any] = {
        **asdict(quantizer.grid),
        "scale": rounded[0] if quantizer.axis is None else rounded,
    }
    if any(zero_points):
        described["zero_point"] = zero_points[0] if quantizer.axis is None else zero_points
    return described
