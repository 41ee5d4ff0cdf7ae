"""The evidence: is the quantized model as good as the float one, and how fast is it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from reptrt.calibrators.base import Progress
from reptrt.engines.build.builder import BuildOptions
from reptrt.engines.device import find_gpu
from reptrt.engines.outputs.box_agreement import detection_agreement
from reptrt.engines.outputs.detection import EVALUATION, Detections, Suppression
from reptrt.engines.runtime.benchmark import Latency, compare_latency
from reptrt.engines.runtime.runners import (
    OnnxRuntimeRunner,
    Runner,
    TensorRTRunner,
    polygraphy_engine_runner,
    polygraphy_onnx_runner,
)
from reptrt.engines.target import Target
from reptrt.models.card import ModelCard
from reptrt.models.graph import INPUT_NAME
from reptrt.pipeline.data.datasets import EvaluationSet, ImageSet
from reptrt.pipeline.engine_file import write_engine
from reptrt.pipeline.export.append_nms import append_end2end
from reptrt.pipeline.validation.compare_outputs import (
    Feeds,
    Numerics,
    compare_layers,
    compare_outputs,
    with_cut,
)
from reptrt.pipeline.validation.evaluate import BATCH, detections, evaluate, pad_batch
from reptrt.pipeline.workspace import Workspace

NUM_COMPARED = 16


@dataclass(frozen=True)
class Trial:
    """What is validated, and how it runs.

    Attributes:
        workspace: holds the files.
        target: what the engine was built for.
        batch_size: fixed batch of the files; None where it is dynamic.
        suppression: of an end-to-end engine; None where it returns the network's outputs.
        max_batch: largest batch of a dynamic engine.
    """

    workspace: Workspace
    target: Target
    batch_size: int | None = None
    suppression: Suppression | None = None
    max_batch: int = BATCH

    @property
    def batch(self) -> int:
        """Images at once."""
        return self.batch_size or min(BATCH, self.max_batch)


def validate_files(
    trial: Trial,
    card: ModelCard,
    samples: ImageSet,
    evaluation: EvaluationSet | None,
    progress: Progress,
) -> dict[str, Any]:
    """Compare the float ONNX, the Q/DQ ONNX and, where they can run, the engine and FP16's.

    Args:
        trial: what is validated.
        card: contract of the network.
        samples: images for the comparison of outputs and the latency.
        evaluation: labelled images; None leaves the accuracy out.
        progress: called as work advances.

    Returns:
        The entries `accuracy`, `numerics`, `engine_numerics`, `fp16_numerics`, `layers`, `latency_ms`
        and `end2end` of report.json, and `shown`: `reptrt.pipeline.validation.shown_boxes.count_boxes` of each labelled
        image; None for a classifier.
    """
    workspace = trial.workspace
    feeds = list(_feeds(samples, trial))
    progress("compare outputs", 0, 3)
    numerics = _compare_outputs(trial, card, feeds)
    progress("compare outputs", 1, 3)
    layers = compare_layers(workspace.fp32_onnx, workspace.trt_onnx, feeds)
    progress("compare outputs", 2, 3)
    latency = _latency(trial, feeds)
    end2end = _compare_end2end(trial, card, feeds)
    progress("compare outputs", 3, 3)
    accuracy, shown = None, None
    if evaluation is not None:
        fp32 = OnnxRuntimeRunner(workspace.fp32_onnx, name="FP32")
        with fp32, evaluation_runner(trial) as quantized:
            accuracy = evaluate(fp32, quantized, card, evaluation, trial.batch, progress)
            shown = accuracy.pop("shown", None)
    return {
        "accuracy": accuracy,
        **numerics,
        "layers": layers,
        "latency_ms": latency,
        "end2end": end2end,
        "shown": shown,
    }


def engine_can_run(target: Target) -> bool:
    """Whether what is deployed to `target` can be executed on this machine."""
    return target.backend == "onnxruntime" or runs_on_gpu(target)


def runs_on_gpu(target: Target) -> bool:
    """Whether this machine has a GPU that runs engines for `target`."""
    gpu = None if target.backend == "onnxruntime" else find_gpu()
    return gpu is not None and (
        not target.compute_capabilities or gpu.compute_capability in target.compute_capabilities
    )


def quantized_runner(trial: Trial) -> Runner:
    """The engine where it can run, else the graph it is built from in ONNX Runtime.

    ONNX Runtime's graph optimizations are off: each Q and DQ then computes what ONNX says.
    """
    workspace, target = trial.workspace, trial.target
    if target.backend == "onnxruntime":
        return OnnxRuntimeRunner(workspace.engine, name="INT8")
    if engine_can_run(target):
        return _engine_runner(workspace.engine, target, "INT8 engine")
    path = workspace.trt_onnx if trial.suppression is None else workspace.end2end_onnx
    return OnnxRuntimeRunner(path, optimize=False, name="INT8")


@contextmanager
def evaluation_runner(trial: Trial) -> Iterator[Runner]:
    """What the accuracy of INT8 is measured on.

    An end-to-end engine drops what mAP needs, boxes of low scores. A copy that differs from it in
    nothing but the thresholds, which are the evaluation's, takes its place: as an engine where that can
    run, else in ONNX Runtime.
    """
    if trial.suppression is None:
        with quantized_runner(trial) as active:
            yield active
        return
    with tempfile.TemporaryDirectory() as folder:
        files = replace(
            trial.workspace,
            end2end_onnx=Path(folder, "evaluation.onnx"),
            engine=Path(folder, "evaluation.engine"),
        )
        backend = trial.target.backend
        append_end2end(files.trt_onnx, files.end2end_onnx, EVALUATION, backend)
        if engine_can_run(trial.target):
            options = BuildOptions(trial.target.compute_capabilities, batch=(1, 1, BATCH))
            write_engine(files.end2end_onnx, files.engine, trial.target, options)
        with quantized_runner(replace(trial, workspace=files)) as active:
            yield active


def _compare_end2end(trial: Trial, card: ModelCard, feeds: Feeds) -> dict[str, Any] | None:
    """Compare the boxes that come out of the engine, or its graph, with those NumPy finds in the maps.

    The maps are the Q/DQ graph's in ONNX Runtime.
    """
    suppression = trial.suppression
    if suppression is None:
        return None
    wanted: list[Detections] = []
    found: list[Detections] = []
    maps = OnnxRuntimeRunner(trial.workspace.trt_onnx, optimize=False)
    with maps, quantized_runner(trial) as end2end:
        for feed in feeds:
            wanted += detections(maps.infer(feed), card, suppression)
            found += detections(end2end.infer(feed), card)
    return {
        **asdict(suppression),
        "identical": 100 * sum(map(_is_same, wanted, found)) / len(wanted),
        "agreement": round(detection_agreement(wanted, found), 2),
        "num_images": len(wanted),
        "backend": end2end.backend,
    }


def _is_same(wanted: Detections, found: Detections) -> bool:
    """Same classes in the same order, scores to 1e-4, boxes to a hundredth of a pixel."""
    return (
        np.array_equal(wanted.labels, found.labels)
        and np.allclose(wanted.scores, found.scores, rtol=0, atol=1e-4)
        and np.allclose(wanted.boxes, found.boxes, rtol=0, atol=1e-2)
    )


def _compare_outputs(trial: Trial, card: ModelCard, feeds: Feeds) -> dict[str, Numerics | None]:
    """The Q/DQ graph against FP32 shows what quantization did, the engine against it what TensorRT did.

    An end-to-end engine has the network's own outputs no more, and what sorts or selects is compared
    in front of it, where engines show nothing.
    """
    workspace, target = trial.workspace, trial.target
    with with_cut([workspace.fp32_onnx, workspace.trt_onnx], card) as (fp32_onnx, qdq_onnx):
        runners = [
            polygraphy_onnx_runner(fp32_onnx, "FP32"),
            polygraphy_onnx_runner(qdq_onnx, "Q/DQ", optimize=False),
        ]
        pairs = {"numerics": (0, 1)}
        if trial.suppression is None and runs_on_gpu(target):
            runners.append(polygraphy_engine_runner(workspace.engine, target.backend, "INT8"))
            runners.append(polygraphy_engine_runner(workspace.fp16_engine, target.backend, "FP16"))
            pairs |= {"engine_numerics": (1, 2), "fp16_numerics": (0, 3)}
        elif trial.suppression is None and engine_can_run(target):
            runners.append(polygraphy_onnx_runner(workspace.engine, "INT8"))
            pairs |= {"engine_numerics": (1, 2)}
        compared = compare_outputs(runners, list(pairs.values()), feeds, card)
    found = {key: numerics or None for key, numerics in zip(pairs, compared, strict=True)}
    return {key: found.get(key) for key in ("numerics", "engine_numerics", "fp16_numerics")}


def _engine_runner(engine: Path, target: Target, name: str) -> TensorRTRunner:
    """It is trusted: this run has built it."""
    return TensorRTRunner(engine, target.backend, name, trusted=True)


def _feeds(samples: ImageSet, trial: Trial) -> Iterator[dict[str, Any]]:
    for batch in islice(samples.batches(trial.batch), max(1, NUM_COMPARED // trial.batch)):
        yield {INPUT_NAME: pad_batch(batch, trial.batch_size)}


def _latency(trial: Trial, feeds: Feeds) -> dict[str, Any]:
    """Latency of one inference: of INT8's engine and FP16's on a GPU, else of both ONNX files on the CPU.

    The two take turns. On the CPU, ONNX Runtime's graph optimizations are on, and both are without NMS.
    """
    workspace, target = trial.workspace, trial.target
    batch = feeds[0] if trial.batch_size else {name: value[:1] for name, value in feeds[0].items()}
    if runs_on_gpu(target):
        engine = _engine_runner(workspace.engine, target, "INT8 engine")
        rival = _engine_runner(workspace.fp16_engine, target, "FP16 engine")
        with engine, rival:
            quantized, fp16 = compare_latency((engine, rival), (batch, batch))
        return _latency_entry(quantized, fp16=fp16)
    is_cpu = target.backend == "onnxruntime"
    fp32 = OnnxRuntimeRunner(workspace.fp32_onnx, name="FP32")
    int8 = OnnxRuntimeRunner(workspace.engine if is_cpu else workspace.trt_onnx, name="INT8")
    with fp32, int8:
        reference, quantized = compare_latency((fp32, int8), (batch, batch))
    return _latency_entry(quantized, fp32=reference)


def _latency_entry(
    quantized: Latency, fp32: Latency | None = None, fp16: Latency | None = None
) -> dict[str, Any]:
    def percentiles(latency: Latency | None) -> dict[str, float] | None:
        if latency is None:
            return None
        return {key: round(getattr(latency, key), 4) for key in ("p50", "p90", "p99")}

    both = {"fp16": fp16, "quantized": quantized}
    alone = {name: percentiles(latency and latency.device_only) for name, latency in both.items()}
    return {
        "fp32": percentiles(fp32),
        "fp16": percentiles(fp16),
        "quantized": percentiles(quantized),
        "device_only": alone if fp16 else None,
        "backend": quantized.backend,
        "device": quantized.device,
    }
