"""Whether a repaired file computes what it did before: both run in ONNX Runtime on the same noise."""

from __future__ import annotations

import logging
from dataclasses import dataclass
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


@dataclass(frozen=True)
class _Grids:
    """The per-tensor grids of a file: what a tensor in front of Q, or an output behind DQ, can hold."""

    read_on: dict[str, tuple[float, float]]
    written_on: dict[str, tuple[float, float]]

    @classmethod
    def read(cls, path: Path) -> _Grids:
        graph = onnx.load(path, load_external_data=False).graph
        constants = {tensor.name: tensor for tensor in graph.initializer}
        read_on: dict[str, tuple[float, float]] = {}
        written_on: dict[str, tuple[float, float]] = {}
        for node in graph.node:
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                grid = _grid(*(constants.get(name) for name in node.input[1:3]))
                if grid is not None and node.op_type == "QuantizeLinear":
                    read_on[node.input[0]] = grid
                elif grid is not None:
                    written_on[node.output[0]] = grid
        return cls(read_on, written_on)

    def amplitude(self, name: str) -> float:
        """A third of the range of the grid on which an input is read; 1 where there is none."""
        low, high = self.read_on.get(name, (-3.0, 3.0))
        return (high - low) / 6

    def saturate(self, name: str, values: NDArray[Any]) -> NDArray[Any]:
        """Clip as the output's own pair did: a repair drops it, and noise exceeds its range."""
        return np.clip(values, *self.written_on[name]) if name in self.written_on else values


def _grid(
    scale: onnx.TensorProto | None = None, zero_point: onnx.TensorProto | None = None
) -> tuple[float, float] | None:
    if scale is None:
        return None
    step = onnx.numpy_helper.to_array(scale)
    zero = np.array(0, np.uint8)  # ONNX's default
    if zero_point is not None:
        zero = onnx.numpy_helper.to_array(zero_point)
    if step.size != 1 or zero.size != 1 or zero.dtype not in (np.int8, np.uint8):
        return None
    codes = np.iinfo(zero.dtype)
    low, high = (float(step.item()) * (code - int(zero.item())) for code in (codes.min, codes.max))
    return low, high


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
            return _worst_output(before, after, _Grids.read(source))
    except ModelFileError as error:
        reason = str(error)
    except Exception as error:  # ONNX Runtime's own errors have no common class
        reason = one_line(error, 160)
    logger.warning("%s: not compared with its repair in ONNX Runtime: %s", source, reason)
    return None


def _worst_output(before: OnnxRuntimeRunner, after: OnnxRuntimeRunner, grids: _Grids) -> str | None:
    noise: dict[str, SignalNoise] = {}
    for seed in range(_FEEDS):
        rng = np.random.default_rng(seed)
        feed = {
            name: _noise(spec, grids.amplitude(name), rng)
            for name, spec in before.input_metadata.items()
        }
        wanted, found = before.infer(feed), after.infer(feed)
        for name, values in wanted.items():
            if np.issubdtype(values.dtype, np.floating):
                if found[name].shape != values.shape:
                    return f"output {name!r} has another shape"
                noise.setdefault(name, SignalNoise()).update(
                    values, grids.saturate(name, found[name])
                )
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
