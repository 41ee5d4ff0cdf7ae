"""Histograms of what each quantized layer reads and of its weights, beside their grids: histograms.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from reptrt.engines.commuting import CARRIED_OPS
from reptrt.engines.histogram_record import FloatWeights, Histogram, LayerHistograms
from reptrt.engines.inspection.qdq_graph import read_weighted_layers
from reptrt.engines.partial import temporary_folder
from reptrt.engines.runtime.runners import OnnxRuntimeRunner
from reptrt.pipeline.validation.compare_outputs import mark_outputs

BINS = 64
SAMPLES = 2
"""Images that activations are counted on: all inputs of layers are held at once."""
_FIRST_CODE, _LAST_CODE = -128, 127
_SAME = (0.7, 1.4)
"""Slope of codes over float weights in a channel whose weights were not multiplied before."""
_LEAST_ENERGY = 1e-4
"""Of the largest channel's, for a slope to count."""


@dataclass(frozen=True)
class _Source:
    """What stands in front of a layer: the tensor that is quantized, its grid, the weight's codes and their steps."""

    tensor: str
    step: float
    grid: tuple[float, float]
    codes: NDArray[np.int8]
    steps: NDArray[np.float32]


def layer_histograms(
    qdq_onnx: Path,
    feed: Mapping[str, NDArray[Any]],
    weights: Mapping[str, NDArray[np.float32]] | None = None,
) -> dict[str, LayerHistograms]:
    """Histograms by layer, of the layers whose activation has one grid and whose weight is codes.

    Args:
        qdq_onnx: the Q/DQ model as exported, with scales per channel.
        feed: its inputs by name; graph optimizations are off.
        weights: by layer, in float; what did not become the codes of its layer is left out.
    """
    sources = dict(_sources(qdq_onnx))
    if not sources:
        return {}
    tensors = [source.tensor for source in sources.values()]
    with temporary_folder() as folder:
        marked = mark_outputs(qdq_onnx, tensors, Path(folder))
        with OnnxRuntimeRunner(marked, optimize=False) as runner:
            values = {**feed, **runner.infer(feed)}
    return {
        name: _histograms(one, values[one.tensor], (weights or {}).get(name))
        for name, one in sources.items()
    }


def _histograms(
    source: _Source, values: NDArray[Any], weight: NDArray[Any] | None
) -> LayerHistograms:
    finite = values[np.isfinite(values)].astype(np.float32)
    low, high = source.grid
    clipped = np.count_nonzero((finite < low) | (finite > high)) / max(1, finite.size)
    span = (min(low, finite.min(initial=low)), max(high, finite.max(initial=high)))
    edges = (_FIRST_CODE - 0.5, _LAST_CODE + 0.5)
    return LayerHistograms(
        activation=_count(finite, span),
        step=source.step,
        grid=source.grid,
        clipped=round(100 * clipped, 4),
        weights=_count(source.codes, edges),
        float_weights=None if weight is None else _in_steps(weight, source),
    )


def _in_steps(weight: NDArray[Any], source: _Source) -> FloatWeights | None:
    """`weight` beside the grid of its codes; None where another weight became these codes."""
    codes, steps = source.codes.astype(np.float32), source.steps
    if weight.ndim == 2 and not _became(codes * steps, weight):
        weight = weight.T  # of a linear layer, whose file may hold either
    if not _became(codes * steps, weight):
        return None
    values, end = weight / steps, float(np.abs(codes).max(initial=1))
    clipped = np.count_nonzero(np.abs(values) > end + 0.5) / values.size
    span = (min(-end, values.min()), max(end, values.max()))
    return FloatWeights(_count(values, span), end, round(100 * clipped, 4))


def _became(quantized: NDArray[Any], weight: NDArray[Any]) -> bool:
    """Whether rows and columns have the slope of rounding, and not a factor of a channel that was divided."""
    if quantized.shape != weight.shape:
        return False
    slopes = []
    for axis in (0, 1):
        others = tuple(at for at in range(weight.ndim) if at != axis)
        energy = (weight**2).sum(others)
        is_known = energy > _LEAST_ENERGY * energy.max()
        slopes.append((quantized * weight).sum(others)[is_known] / energy[is_known])
    low, high = _SAME
    found = np.concatenate(slopes)
    return bool(found.size and found.min() > low and found.max() < high)


def _count(values: NDArray[Any], span: tuple[float, float]) -> Histogram:
    counts, edges = np.histogram(values, bins=BINS, range=span)
    return Histogram(float(edges[0]), float(edges[-1]), tuple(map(int, counts)))


def _sources(path: Path) -> Iterator[tuple[str, _Source]]:
    graph = onnx.load(path).graph
    names = {layer.name for layer in read_weighted_layers(path) if layer.quantized}
    constants = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        if node.name not in names:
            continue
        pairs = [_dequantize(name, makers) for name in node.input[:2]]
        codes = [pair for pair in pairs if pair is not None and pair.input[0] in constants]
        active = [pair for pair in pairs if pair is not None and pair.input[0] in makers]
        if len(codes) != 1 or len(active) != 1:
            continue
        quantize = makers[active[0].input[0]]
        known = all(name in constants for name in quantize.input[1:3])
        if quantize.op_type == "QuantizeLinear" and len(quantize.input) == 3 and known:
            source = _source(quantize, codes[0], constants, makers)
            if np.isfinite(source.grid).all():  # else somebody changed the file
                yield node.name, source


def _source(
    quantize: onnx.NodeProto,
    weight: onnx.NodeProto,
    constants: Mapping[str, NDArray[Any]],
    makers: Mapping[str, onnx.NodeProto],
) -> _Source:
    """Behind a Clip, which makes a grid of fewer than 8 bits, the tensor in front of it counts."""
    tensor = quantize.input[0]
    scale, zero = (constants[name].astype(np.float64) for name in quantize.input[1:3])
    info = np.iinfo(constants[quantize.input[2]].dtype)
    low, high = float(((info.min - zero) * scale).min()), float(((info.max - zero) * scale).max())
    maker = makers.get(tensor)
    if maker is not None and maker.op_type == "Clip" and len(maker.input) == 3:
        bounds = [constants.get(name) for name in maker.input[1:]]
        if bounds[0] is not None and bounds[1] is not None:
            low, high, tensor = float(bounds[0].min()), float(bounds[1].max()), maker.input[0]
    codes, steps = constants[weight.input[0]], constants[weight.input[1]].astype(np.float32)
    if steps.size > 1:
        axis = next((one.i for one in weight.attribute if one.name == "axis"), 1)
        steps = steps.reshape([-1 if at == axis % codes.ndim else 1 for at in range(codes.ndim)])
    return _Source(tensor, float(scale.max()), (low, high), codes, steps)


def read_float_weights(path: Path) -> dict[str, NDArray[Any]]:
    """Constant weights of the layers of a float model, as its file holds them."""
    graph = onnx.load(path).graph
    names = {layer.name for layer in read_weighted_layers(path)}
    constants = {one.name: one for one in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    found = {}
    for node in graph.node:
        roots = [_root(name, makers) for name in node.input[:2]] if node.name in names else []
        held = [constants[name] for name in roots if name in constants]
        if len(held) == 1:
            found[node.name] = numpy_helper.to_array(held[0])
    return found


def _root(tensor: str, makers: Mapping[str, onnx.NodeProto]) -> str:
    """What reaches `tensor` through operators that only move it."""
    node = makers.get(tensor)
    while node is not None and node.op_type in CARRIED_OPS:
        tensor = node.input[0]
        node = makers.get(tensor)
    return tensor


def _dequantize(tensor: str, makers: Mapping[str, onnx.NodeProto]) -> onnx.NodeProto | None:
    """The DequantizeLinear that reaches `tensor` through operators that carry codes."""
    node = makers.get(tensor)
    while node is not None and node.op_type != "DequantizeLinear":
        if node.op_type not in CARRIED_OPS:
            return None
        node = makers.get(node.input[0])
    return node
