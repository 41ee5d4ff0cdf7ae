"""Whether a repaired file computes what it did before: both run in ONNX Runtime on the same noise."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from reptrt.engines.foreign.graphs import require_small_tensors
from reptrt.engines.foreign.text import one_line
from reptrt.engines.outputs.snr import SignalNoise
from reptrt.engines.runtime.runners import ModelFileError, OnnxRuntimeRunner
from reptrt.engines.tensor_spec import TensorSpec

logger = logging.getLogger(__name__)

LEAST_SNR = 25.0
"""Of an output after against before, in dB. Codes that round to the other neighbour leave 40 and more,
a scale that doubled for a concat 30; a tensor that lost its digits stays below 20."""

_FEEDS = 2
_OPEN_SIDE = 64
_MOST_BYTES = 1 << 28
"""Of one tensor: both files run, and each keeps several."""
_STEPS = 127


def find_loss(source: Path, repaired: Path) -> str | None:
    """Say which output of `repaired` is no longer that of `source`; None where none is.

    Files that ONNX Runtime does not run are not compared; a warning says so.
    """
    try:
        require_small_tensors(source, 1, _MOST_BYTES)
        with (
            OnnxRuntimeRunner(source, optimize=False) as before,
            OnnxRuntimeRunner(repaired, optimize=False) as after,
        ):
            return _worst_output(before, after, _input_ranges(source))
    except ModelFileError as error:
        reason = str(error)
    except Exception as error:  # ONNX Runtime's own errors have no common class
        reason = one_line(error, 160)
    logger.warning("%s: not compared with its repair in ONNX Runtime: %s", source, reason)
    return None


def _worst_output(
    before: OnnxRuntimeRunner, after: OnnxRuntimeRunner, ranges: dict[str, float]
) -> str | None:
    noise: dict[str, SignalNoise] = {}
    for seed in range(_FEEDS):
        rng = np.random.default_rng(seed)
        feed = {
            name: _noise(spec, ranges.get(name, 1.0), rng)
            for name, spec in before.input_metadata.items()
        }
        wanted, found = before.infer(feed), after.infer(feed)
        for name, values in wanted.items():
            if np.issubdtype(values.dtype, np.floating):
                if found[name].shape != values.shape:
                    return f"output {name!r} has another shape"
                noise.setdefault(name, SignalNoise()).update(values, found[name])
    lost = {name: sums.snr_db for name, sums in noise.items() if _is_lost(sums)}
    if not lost:
        return None
    worst = min(lost, key=lambda name: lost[name])
    return f"output {worst!r} would be {lost[worst]:.1f} dB from what it is"


def _is_lost(sums: SignalNoise) -> bool:
    """An output without any signal says nothing: `-inf`, but finite sums."""
    return sums.snr_db < LEAST_SNR and (np.isfinite(sums.snr_db) or sums.cosine != 0.0)


def _noise(spec: TensorSpec, amplitude: float, rng: np.random.Generator) -> NDArray[Any]:
    sides = [
        side if side > 0 else 1 if axis == 0 else _OPEN_SIDE for axis, side in enumerate(spec.shape)
    ]
    if np.issubdtype(spec.dtype, np.floating):
        return (rng.standard_normal(sides) * amplitude).astype(spec.dtype)
    return rng.integers(0, 2, sides).astype(spec.dtype)


def _input_ranges(path: Path) -> dict[str, float]:
    """Input -> a third of the range of the grid on which it is read, where there is one."""
    graph = onnx.load(path, load_external_data=False).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    found: dict[str, float] = {}
    for node in graph.node:
        if node.op_type == "QuantizeLinear" and node.input[1] in constants:
            scale = onnx.numpy_helper.to_array(constants[node.input[1]])
            if scale.size == 1:
                found[node.input[0]] = float(scale.item()) * _STEPS / 3
    return found
