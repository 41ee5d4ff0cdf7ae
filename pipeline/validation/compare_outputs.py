"""SNR and cosine between the quantized and the float network: of the outputs, and of each layer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from polygraphy.comparator import (
    Comparator,
    CosineSimilarityCompareFunc,
    IterationResult,
    RunResults,
    SnrCompareFunc,
)
from polygraphy.logger import G_LOGGER

from reptrt.engines.form import read_form
from reptrt.engines.inspection.qdq_graph import read_weighted_layers
from reptrt.engines.outputs.snr import SignalNoise
from reptrt.engines.partial import temporary_folder
from reptrt.engines.report_schema import LayerSnr, Numerics, OutputNumerics
from reptrt.engines.runtime.polygraphy_runner import PolygraphyRunner
from reptrt.engines.runtime.runners import OnnxRuntimeRunner, Runner
from reptrt.models.card import ModelCard, Part
from reptrt.pipeline.validation.layer_factors import behind_factors, hidden_factors
from reptrt.pipeline.validation.value_layers import ChannelNoise, find_value_layers

_BACKGROUND_SCORE = 0.1
"""A network that sees what it was made for says more than this somewhere."""

Feeds = Sequence[Mapping[str, NDArray[Any]]]


def compare_outputs(
    runners: Sequence[Runner],
    pairs: Sequence[tuple[int, int]],
    feeds: Feeds,
    card: ModelCard | None = None,
) -> list[Numerics]:
    """SNR in dB and cosine of each output, averaged over `feeds` by Polygraphy, for each pair.

    What a concat joins to one output is compared part by part, and of what lies in 0..1, as scores do,
    the largest value is told.

    Args:
        runners: with distinct names; each is loaded, runs on all feeds, and is freed before the next.
        pairs: (reference, compared) as indices into `runners`.
        feeds: inputs by name.
        card: what is compared, and its parts; None for all outputs as they are.
    """
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        results = Comparator.run(list(map(PolygraphyRunner, runners)), data_loader=list(feeds))
        split = [[_parts(values, card) for values in found] for _, found in results]
        return [_compare(split[reference], split[test]) for reference, test in pairs]


def _parts(values: Mapping[str, Any], card: ModelCard | None) -> dict[str, NDArray[Any]]:
    """What is compared of the outputs of one run, by name."""
    if card is None:
        return dict(values)
    found: dict[str, NDArray[Any]] = {}
    known = dict(zip(card.compared, card.parts, strict=False))
    for name in card.compared:
        parts = known.get(name, ())
        if name in values:
            for part in parts or ((),):
                found[f"{name}{_range_text(part)}"] = np.ascontiguousarray(
                    values[name][_slices(part)]
                )
    return found


def _slices(part: Part) -> tuple[slice, ...]:
    ranges = {axis: slice(first, last) for axis, first, last in part}
    return tuple(ranges.get(axis, slice(None)) for axis in range(max(ranges, default=-1) + 1))


def _range_text(part: Part) -> str:
    """`[:, 4:84]`, as NumPy writes it; nothing for a whole output."""
    shown = ", ".join(
        ":" if cut == slice(None) else f"{cut.start}:{cut.stop}" for cut in _slices(part)
    )
    return f"[{shown}]" if shown else ""


def _compare(
    reference: Sequence[Mapping[str, NDArray[Any]]], test: Sequence[Mapping[str, NDArray[Any]]]
) -> Numerics:
    names = [name for name in reference[0] if name in test[0]]
    if not names:
        return {}
    pair = ("reference", "test")
    both = RunResults(
        [
            (side, [IterationResult({name: values[name] for name in names}) for values in found])
            for side, found in zip(pair, (reference, test), strict=True)
        ]
    )
    snr, cosine = Comparator.compare_accuracy(
        both,
        comparisons=[(0, 1)],
        compare_func=[SnrCompareFunc(), CosineSimilarityCompareFunc()],
        check_average=True,
    )
    snr_of, cosine_of = snr.average_results(pair), cosine.average_results(pair)
    found = {}
    for name in names:
        least = min(values[name].min() for values in reference)
        most = max(values[name].max() for values in reference)
        is_score = least >= 0 and most <= 1
        found[name] = OutputNumerics(
            _finite(snr_of[name].snr),
            _finite(cosine_of[name].cosine_similarity),
            _largest(reference, name) if is_score else None,
            _largest(test, name) if is_score else None,
            is_background=bool(most < _BACKGROUND_SCORE if is_score else most < 0),
        )
    return found


def _largest(results: Sequence[Mapping[str, NDArray[Any]]], name: str) -> float | None:
    return _finite(max(values[name].max() for values in results))


@contextmanager
def with_cut(paths: Sequence[Path], card: ModelCard) -> Iterator[list[Path]]:
    """Copies of ONNX files that return what is compared; the files themselves where they do."""
    if card.cut is None:
        yield list(paths)
        return
    with temporary_folder() as folder:
        yield [mark_outputs(path, card.compared, Path(folder)) for path in paths]


def without_missing_cut(paths: Sequence[Path], card: ModelCard) -> ModelCard:
    """`card`, or one that compares the outputs themselves where a file lacks a tensor of the cut."""
    for path in paths if card.cut else ():
        nodes = onnx.load(path, load_external_data=False).graph.node
        if not set(card.cut or ()) <= {name for node in nodes for name in node.output}:
            return replace(card, cut=None, parts=())
    return card


def compare_layers(
    fp32_onnx: Path,
    qdq_onnx: Path,
    feeds: Feeds,
    scales_onnx: Path | None = None,
    *,
    is_shifted: bool = True,
    rows: Mapping[str, NDArray[np.float32]] | None = None,
) -> tuple[LayerSnr, ...]:
    """SNR in dB of the output of every convolution and matrix product with a weight, in graph order.

    Layers are matched by node name, which export takes from the PyTorch layer, and compared with their
    bias and before their ReLU; those that make an attention's values (`value_layers`) up to a gain and an
    offset of each channel. Graph optimizations are off, so that every layer exists.

    Args:
        fp32_onnx: the float network.
        qdq_onnx: the quantized one, in any form (`reptrt.engines.form`).
        feeds: inputs by name.
        scales_onnx: the quantized one with scales per channel, where `qdq_onnx` has the multiplier form.
        is_shifted: whether export may have shifted layers in front of a ReLU.
        rows: layer -> what the channels of its output were divided by [channels].
    """
    reference, test = _read_layers(fp32_onnx), _read_layers(qdq_onnx)
    layers = [name for name in reference if name in test]
    factors = {}
    if scales_onnx is not None and read_form(onnx.load(qdq_onnx)) == "multiplier":
        factors = hidden_factors(qdq_onnx, scales_onnx)
    values = find_value_layers(fp32_onnx)
    noise = {name: ChannelNoise() if name in values else SignalNoise() for name in layers}
    with temporary_folder() as folder:
        runners = [
            OnnxRuntimeRunner(
                mark_outputs(path, [found[name].output for name in layers], Path(folder)),
                optimize=False,
            )
            for path, found in ((fp32_onnx, reference), (qdq_onnx, test))
        ]
        with runners[0] as float_runner, runners[1] as quantized_runner:
            for feed in feeds:
                expected, actual = float_runner.infer(feed), quantized_runner.infer(feed)
                for name in layers:
                    shift = np.float32(is_shifted and _shift(reference[name], test[name]))
                    layer = expected[reference[name].output]
                    raw = actual[test[name].output].astype(np.float32) * factors.get(name, 1)
                    quantized = raw.reshape(layer.shape)
                    sides = [1] * (layer.ndim - 2) if "Conv" in reference[name].op else []
                    divisor = (rows or {}).get(name, np.ones(1, np.float32)).reshape(-1, *sides)
                    noise[name].update(layer, (quantized + shift) * divisor)
    return tuple(
        LayerSnr(name, reference[name].op, _finite(one.snr_db), one.is_finite)
        for name, one in noise.items()
    )


class _Layer(NamedTuple):
    """A weighted layer, the tensor that it makes, and the operators that read it."""

    op: str
    output: str
    readers: list[str]
    scale: float
    """Of the QuantizeLinear that alone reads the output; 0 where others do."""


def _shift(reference: _Layer, test: _Layer) -> float:
    """128 s, which a layer's output is too small by where INT8 saturation does its ReLU's work.

    `reptrt.pipeline.export.shift_biases` makes such layers. One is known by its ReLU: the float model has it, the
    Q/DQ model quantizes the layer's output as it is.
    """
    return 128 * test.scale if reference.readers == ["Relu"] else 0.0


def _read_layers(path: Path) -> dict[str, _Layer]:
    names = {layer.name for layer in read_weighted_layers(path)}
    model = onnx.load(path)
    graph, has_factors = model.graph, read_form(model) == "multiplier"
    constants = {tensor.name: tensor for tensor in graph.initializer}
    readers = _readers(graph)
    layers = {}
    for node in graph.node:
        if node.name not in names:
            continue
        behind = behind_factors(node, readers, constants) if has_factors else node.output[0]
        output = _with_bias(node.op_type, behind, readers, constants)
        found = readers.get(output, [])
        kinds = [reader.op_type for reader in found]
        scale = 0.0
        if kinds == ["QuantizeLinear"]:
            scale = float(numpy_helper.to_array(constants[found[0].input[1]]))
        layers[node.name] = _Layer(node.op_type, output, kinds, scale)
    return layers


def _with_bias(
    op: str,
    product: str,
    readers: Mapping[str, list[onnx.NodeProto]],
    constants: Mapping[str, onnx.TensorProto],
) -> str:
    """The tensor behind the Add that gives a MatMul its bias; else its `product`.

    What a reparameterization takes off the product it puts into the bias.
    """
    tensor = product
    while op == "MatMul" and len(found := readers.get(tensor, [])) == 1:
        if found[0].op_type == "Add" and any(name in constants for name in found[0].input):
            return str(found[0].output[0])
        if found[0].op_type != "Reshape":
            break
        tensor = found[0].output[0]
    return product


def _readers(graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto]]:
    """Tensor -> nodes that read it, directly or through Casts."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in reversed(graph.node):  # what reads a Cast is known before the Cast
        found = readers.get(node.output[0], []) if node.op_type == "Cast" else [node]
        for name in node.input:
            readers.setdefault(name, []).extend(found)
    return readers


def mark_outputs(path: Path, tensors: Sequence[str], folder: Path) -> Path:
    """A copy of an ONNX file in `folder` that returns `tensors` too; inputs of the graph stay inputs."""
    model = onnx.load(path)
    present = {value.name for value in (*model.graph.output, *model.graph.input)}
    for value in dict.fromkeys(tensors):
        if value not in present:
            model.graph.output.append(onnx.ValueInfoProto(name=value))
    marked = folder / path.name
    onnx.save(model, marked)
    return marked


def _finite(value: float) -> float | None:
    return round(float(value), 4) if math.isfinite(value) else None
