"""Histograms of what each quantized layer reads, beside its grid, and of its codes: histograms.json."""

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
from reptrt.engines.histogram_record import Histogram, LayerHistograms
from reptrt.engines.inspection.qdq_graph import read_weighted_layers
from reptrt.engines.partial import temporary_folder
from reptrt.engines.runtime.runners import OnnxRuntimeRunner
from reptrt.pipeline.validation.compare_outputs import mark_outputs

BINS = 64
SAMPLES = 2
"""Images that activations are counted on: all inputs of layers are held at once."""
_FIRST_CODE, _LAST_CODE = -128, 127


@dataclass(frozen=True)
class _Source:
    """What stands in front of a layer: the tensor that is quantized, its grid, and the weight's codes."""

    tensor: str
    step: float
    grid: tuple[float, float]
    codes: NDArray[np.int8]


def layer_histograms(
    qdq_onnx: Path, feed: Mapping[str, NDArray[Any]]
) -> dict[str, LayerHistograms]:
    """Histograms by layer, of the layers whose activation has one grid and whose weight is codes.

    Args:
        qdq_onnx: the Q/DQ model as exported, with scales per channel.
        feed: its inputs by name; graph optimizations are off.
    """
    sources = dict(_sources(qdq_onnx))
    if not sources:
        return {}
    tensors = [source.tensor for source in sources.values()]
    with temporary_folder() as folder:
        marked = mark_outputs(qdq_onnx, tensors, Path(folder))
        with OnnxRuntimeRunner(marked, optimize=False) as runner:
            values = {**feed, **runner.infer(feed)}
    return {name: _histograms(one, values[one.tensor]) for name, one in sources.items()}


def _histograms(source: _Source, values: NDArray[Any]) -> LayerHistograms:
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
    )


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
            source = _source(quantize, constants[codes[0].input[0]], constants, makers)
            if np.isfinite(source.grid).all():  # else somebody changed the file
                yield node.name, source


def _source(
    quantize: onnx.NodeProto,
    codes: NDArray[Any],
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
    return _Source(tensor, float(scale.max()), (low, high), codes)


def _dequantize(tensor: str, makers: Mapping[str, onnx.NodeProto]) -> onnx.NodeProto | None:
    """The DequantizeLinear that reaches `tensor` through operators that carry codes."""
    node = makers.get(tensor)
    while node is not None and node.op_type != "DequantizeLinear":
        if node.op_type not in CARRIED_OPS:
            return None
        node = makers.get(node.input[0])
    return node
