"""The evidence: is the quantized model as good as the float one, and how fast is it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from calibrators.base import Progress
from engines.benchmark import Latency, compare_latency, measure_latency
from engines.detection import Detections
from engines.device import find_gpu
from engines.runners import (
    OnnxRuntimeRunner,
    Runner,
    TensorRTRunner,
    polygraphy_engine_runner,
    polygraphy_onnx_runner,
)
from engines.target import Target
from models.graph import INPUT_NAME
from pipeline.compare_outputs import Feeds, compare_layers, compare_outputs
from pipeline.datasets import DetectionSet, EvaluationSet, ImageSet
from pipeline.evaluate import BATCH, detect_batch, evaluate, pad_batch
from pipeline.model_card import ModelCard
from pipeline.pictures import draw_boxes
from pipeline.preprocess import read_image
from pipeline.report_schema import Picture
from pipeline.workspace import Workspace

NUM_COMPARED = 16
NUM_PICTURES = 4
PICTURE_SCORE = 0.4


def validate_files(
    workspace: Workspace,
    target: Target,
    card: ModelCard,
    samples: ImageSet,
    evaluation: EvaluationSet | None,
    batch_size: int | None,
    progress: Progress,
) -> dict[str, Any]:
    """Compare the float ONNX, the Q/DQ ONNX and, where a GPU is, the engine.

    Args:
        workspace: holds the files.
        target: what the engine was built for.
        card: contract of the network.
        samples: images for the comparison of outputs and the latency.
        evaluation: labelled images; None leaves the accuracy out.
        batch_size: fixed batch of the files; None where it is dynamic.
        progress: called as work advances.

    Returns:
        The entries `accuracy`, `numerics`, `layers` and `latency_ms` of report.json.
    """
    feeds = list(_feeds(samples, batch_size))
    progress("compare outputs", 0, 3)
    numerics = compare_outputs(
        polygraphy_onnx_runner(workspace.fp32_onnx, "FP32"),
        _polygraphy_quantized(workspace, target),
        feeds,
    )
    progress("compare outputs", 1, 3)
    layers = compare_layers(workspace.fp32_onnx, workspace.trt_onnx, feeds)
    progress("compare outputs", 2, 3)
    latency = _latency(workspace, target, feeds, batch_size)
    progress("compare outputs", 3, 3)
    accuracy = None
    if evaluation is not None:
        fp32 = OnnxRuntimeRunner(workspace.fp32_onnx, name="FP32")
        with fp32, quantized_runner(workspace, target) as quantized:
            accuracy = evaluate(fp32, quantized, card, evaluation, batch_size, progress)
    return {
        "accuracy": accuracy,
        "numerics": numerics,
        "layers": layers,
        "latency_ms": latency,
    }


def engine_can_run(target: Target) -> bool:
    """Whether an engine for `target` can be executed on this machine."""
    gpu = find_gpu()
    return gpu is not None and (
        not target.compute_capabilities or gpu.compute_capability in target.compute_capabilities
    )


@contextmanager
def quantized_runner(workspace: Workspace, target: Target) -> Iterator[Runner]:
    """The engine where it can run, else the graph it is built from in ONNX Runtime.

    ONNX Runtime's graph optimizations are off: each Q and DQ then computes what ONNX says.
    """
    runner: Runner = (
        TensorRTRunner(workspace.engine, target.backend, name="INT8 engine")
        if engine_can_run(target)
        else OnnxRuntimeRunner(workspace.trt_onnx, optimize=False, name="INT8")
    )
    with runner as active:
        yield active


def draw_pictures(
    workspace: Workspace,
    target: Target,
    card: ModelCard,
    evaluation: DetectionSet,
    batch_size: int | None,
) -> list[Picture]:
    """First images of `evaluation` with the boxes of FP32 and of INT8 drawn on them."""
    names = card.classes or evaluation.class_names
    pictures: list[Picture] = []
    fp32 = OnnxRuntimeRunner(workspace.fp32_onnx, name="FP32")
    with fp32, quantized_runner(workspace, target) as quantized:
        for batch in islice(evaluation.batches(1), NUM_PICTURES):
            file = evaluation.files[int(batch.indices[0])]
            before, after = (
                _draw(file, detect_batch(runner, card, batch, batch_size)[0], names)
                for runner in (fp32, quantized)
            )
            pictures.append(Picture(title=file.name, fp32_png=before, quantized_png=after))
    return pictures


def _polygraphy_quantized(workspace: Workspace, target: Target) -> Any:
    if engine_can_run(target):
        return polygraphy_engine_runner(workspace.engine, target.backend, "INT8")
    return polygraphy_onnx_runner(workspace.trt_onnx, "INT8", optimize=False)


def _feeds(samples: ImageSet, batch_size: int | None) -> Iterator[dict[str, Any]]:
    size = batch_size or BATCH
    for batch in islice(samples.batches(size), max(1, NUM_COMPARED // size)):
        yield {INPUT_NAME: pad_batch(batch, batch_size)}


def _latency(
    workspace: Workspace, target: Target, feeds: Feeds, batch_size: int | None
) -> dict[str, Any]:
    """Latency of one inference: of the engine on a GPU, else of both ONNX files on the CPU.

    On the CPU, ONNX Runtime's graph optimizations are on and the two models take turns.
    """
    batch = feeds[0] if batch_size else {name: value[:1] for name, value in feeds[0].items()}
    if engine_can_run(target):
        with TensorRTRunner(workspace.engine, target.backend, name="INT8 engine") as engine:
            return _latency_entry(None, measure_latency(engine, batch))
    fp32 = OnnxRuntimeRunner(workspace.fp32_onnx, name="FP32")
    int8 = OnnxRuntimeRunner(workspace.trt_onnx, name="INT8")
    with fp32, int8:
        return _latency_entry(*compare_latency((fp32, int8), (batch, batch)))


def _latency_entry(fp32: Latency | None, quantized: Latency) -> dict[str, Any]:
    def percentiles(latency: Latency) -> dict[str, float]:
        return {key: round(getattr(latency, key), 3) for key in ("p50", "p90", "p99")}

    return {
        "fp32": None if fp32 is None else percentiles(fp32),
        "quantized": percentiles(quantized),
        "backend": quantized.backend,
        "device": quantized.device,
    }


def _draw(file: Path, found: Detections, names: Sequence[str]) -> bytes:
    confident = found.scores >= PICTURE_SCORE
    rows = np.column_stack([found.boxes, found.scores, found.labels])[confident]
    return draw_boxes(np.asarray(read_image(file)), rows, names)
