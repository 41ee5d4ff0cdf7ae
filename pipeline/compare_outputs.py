"""How far the quantized network's outputs are from the float one's: at the end, and layer by layer."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray
from polygraphy.comparator import Comparator, CosineSimilarityCompareFunc, SnrCompareFunc
from polygraphy.logger import G_LOGGER

from engines.qdq_graph import read_weighted_layers
from engines.runners import OnnxRuntimeRunner
from pipeline.metrics import SignalNoise

Feeds = Sequence[Mapping[str, NDArray[Any]]]


def compare_outputs(reference: Any, test: Any, feeds: Feeds) -> dict[str, dict[str, float | None]]:
    """SNR in dB and cosine of each output, averaged over `feeds` by Polygraphy.

    Args:
        reference: Polygraphy runner of the float model.
        test: Polygraphy runner of the quantized model or engine.
        feeds: inputs by name.
    """
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        results = Comparator.run([reference, test], data_loader=list(feeds))
        snr, cosine = Comparator.compare_accuracy(
            results,
            compare_func=[SnrCompareFunc(), CosineSimilarityCompareFunc()],
            check_average=True,
        )
    pair = next(iter(snr.keys()))
    snr_of, cosine_of = snr.average_results(pair), cosine.average_results(pair)
    return {
        name: {
            "snr_db": _finite(snr_of[name].snr),
            "cosine": _finite(cosine_of[name].cosine_similarity),
        }
        for name in snr_of
    }


def compare_layers(fp32_onnx: Path, qdq_onnx: Path, feeds: Feeds) -> list[dict[str, Any]]:
    """SNR in dB of every weighted layer's output, in graph order: which layers lose most.

    Layers are matched by node name, which export takes from the PyTorch layer. Graph optimizations
    are off, so that every layer exists.
    """
    reference, test = _layer_outputs(fp32_onnx), _layer_outputs(qdq_onnx)
    layers = [name for name in reference if name in test]
    noise = {name: SignalNoise() for name in layers}
    with tempfile.TemporaryDirectory() as folder:
        runners = [
            OnnxRuntimeRunner(_mark_outputs(path, outputs, layers, Path(folder)), optimize=False)
            for path, outputs in ((fp32_onnx, reference), (qdq_onnx, test))
        ]
        with runners[0] as float_runner, runners[1] as quantized_runner:
            for feed in feeds:
                expected, actual = float_runner.infer(feed), quantized_runner.infer(feed)
                for name in layers:
                    noise[name].update(
                        expected[reference[name].output[0]],
                        actual[test[name].output[0]].astype("float32"),
                    )
    return [
        {"layer": name, "op": reference[name].op_type, "snr_db": _finite(noise[name].snr_db)}
        for name in layers
    ]


def _layer_outputs(path: Path) -> dict[str, onnx.NodeProto]:
    names = {layer.name for layer in read_weighted_layers(path)}
    graph = onnx.load(path, load_external_data=False).graph
    return {node.name: node for node in graph.node if node.name in names}


def _mark_outputs(
    path: Path, nodes: Mapping[str, onnx.NodeProto], layers: Sequence[str], folder: Path
) -> Path:
    model = onnx.load(path)
    present = {output.name for output in model.graph.output}
    for name in layers:
        value = nodes[name].output[0]
        if value not in present:
            model.graph.output.append(onnx.ValueInfoProto(name=value))
    marked = folder / path.name
    onnx.save(model, marked)
    return marked


def _finite(value: float) -> float | None:
    return round(float(value), 4) if math.isfinite(value) else None
