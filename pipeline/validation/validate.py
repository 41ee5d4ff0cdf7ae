"""Measure the quantized model against the float one: accuracy, outputs, layers, latency."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reptrt.calibrators.progress import Progress
from reptrt.engines.build.builder import BuildOptions
from reptrt.engines.device import find_gpu
from reptrt.engines.histogram_record import LayerHistograms
from reptrt.engines.outputs.box_agreement import detection_agreement
from reptrt.engines.outputs.detection import Detections
from reptrt.engines.outputs.suppression import EVALUATION, Suppression
from reptrt.engines.partial import temporary_folder
from reptrt.engines.report_schema import (
    DeviceLatency,
    End2End,
    LayerSnr,
    ModelLatency,
    Numerics,
    Percentiles,
    Reference,
    Validation,
)
from reptrt.engines.runtime.benchmark import Latency, compare_latency
from reptrt.engines.runtime.runners import (
    OnnxRuntimeRunner,
    Runner,
    TensorRTRunner,
)
from reptrt.engines.target import Target
from reptrt.models.card import ModelCard
from reptrt.models.inputs import resize_feed
from reptrt.pipeline.data.datasets import ClassificationSet, DetectionSet, EvaluationSet
from reptrt.pipeline.data.feeds import FeedSet
from reptrt.pipeline.engine.build import write_engine
from reptrt.pipeline.export.append_nms import write_with_nms
from reptrt.pipeline.validation.compare_outputs import (
    Feeds,
    compare_layers,
    compare_outputs,
    with_cut,
    without_missing_cut,
)
from reptrt.pipeline.validation.evaluate import Evaluation, detections, evaluate
from reptrt.pipeline.validation.evaluate_batches import BATCH, pad_batch
from reptrt.pipeline.validation.histograms import SAMPLES, layer_histograms, read_float_weights
from reptrt.pipeline.validation.remembered import OutputMemory, RememberingRunner
from reptrt.pipeline.validation.shards import ONE_PROCESS, Spread, evaluate_in_parts
from reptrt.pipeline.workspace.folder import Workspace

NUM_COMPARED = 16


@dataclass(frozen=True)
class ValidationSetup:
    """The files to validate, and how to run them.

    Attributes:
        workspace: holds the files.
        target: what the engine was built for.
        batch_size: fixed batch of the files; None where it is dynamic.
        suppression: of an end-to-end engine; None where it returns the network's outputs.
        max_batch: largest batch of a dynamic engine.
        spread: over what an evaluation in ONNX Runtime is spread.
        is_quantized_file: the Q/DQ model is a file that brought its own scales, as it came.
        reference: what the quantized model is compared with.
        rows: layer -> what the channels of its output were divided by [channels].
        weights: layer -> its weight before it was quantized, where channels were divided; else the float model has it.
        memory: what the float network answered already.
    """

    workspace: Workspace
    target: Target
    batch_size: int | None = None
    suppression: Suppression | None = None
    max_batch: int = BATCH
    spread: Spread = ONE_PROCESS
    is_quantized_file: bool = False
    reference: Reference = "float"
    rows: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    weights: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    memory: OutputMemory = field(default_factory=OutputMemory)

    @property
    def reference_onnx(self) -> Path:
        """What accuracy and outputs are compared with."""
        files = self.workspace
        return files.qdq_onnx if self.reference == "file" else files.fp32_onnx

    @property
    def batch(self) -> int:
        """Images at once."""
        return self.batch_size or min(BATCH, self.max_batch)


def validate_files(
    setup: ValidationSetup,
    card: ModelCard,
    samples: FeedSet,
    evaluation: EvaluationSet | None,
    progress: Progress,
    others: Mapping[str, FeedSet] | None = None,
) -> Validation:
    """Compare the FP32 ONNX, the Q/DQ ONNX and, where this machine runs them, the INT8 and FP16 engines.

    Args:
        setup: what is validated.
        card: contract of the network.
        samples: for the comparison of outputs and the latency.
        evaluation: labelled images; None leaves the accuracy out.
        progress: called as work advances.
        others: `at 320x320` -> samples of other sizes than the usual one.
    """
    feeds = list(_feeds(samples, setup))
    progress("compare outputs", 0, 3)
    numerics = _compare_outputs(setup, card, feeds)
    for label, sized in (others or {}).items():
        _add(numerics, _compare_outputs(setup, card, list(_feeds(sized, setup))), label)
    progress("compare outputs", 1, 3)
    layers = _compare_layers(setup, feeds)
    progress("compare outputs", 2, 3)
    latency = _latency(setup, card, feeds)
    end2end = _compare_nms(setup, card, feeds)
    progress("compare outputs", 3, 3)
    found = None
    if evaluation is not None:
        is_float = setup.reference == "float"
        wanted = RememberingRunner(setup.reference_onnx, setup.memory, is_float, "reference")
        with evaluation_runner(setup) as quantized:
            found = _evaluate(setup, card, wanted, quantized, evaluation, progress)
    return Validation(
        accuracy=found.accuracy if found else None,
        numerics=numerics["numerics"],
        engine_numerics=numerics["engine_numerics"],
        fp16_numerics=numerics["fp16_numerics"],
        reference=setup.reference,
        file_numerics=numerics["file_numerics"],
        layers=layers,
        latency_ms=latency,
        end2end=end2end,
        shown=found.shown if found else None,
        changed=found.changed if found else (),
        is_constant_input=_is_constant(feeds),
    )


def _evaluate(
    setup: ValidationSetup,
    card: ModelCard,
    fp32: OnnxRuntimeRunner,
    quantized: Runner,
    evaluation: EvaluationSet,
    progress: Progress,
) -> Evaluation:
    """In parts where that was asked for, and where both models run in ONNX Runtime."""
    if (
        not setup.spread.is_one
        and isinstance(evaluation, (ClassificationSet, DetectionSet))
        and isinstance(quantized, OnnxRuntimeRunner)
    ):
        return evaluate_in_parts(
            fp32, quantized, card, evaluation, setup.batch, progress, setup.spread
        )
    with fp32:
        return evaluate(fp32, quantized, card, evaluation, setup.batch, progress)


def _add(
    numerics: dict[str, Numerics | None], others: Mapping[str, Numerics | None], label: str
) -> None:
    """Put what was found at another size beside the usual size's, in place."""
    for key, found in others.items():
        if found:
            named = {f"{output} {label}": value for output, value in found.items()}
            numerics[key] = {**(numerics[key] or {}), **named}


def engine_can_run(target: Target) -> bool:
    """Whether this machine can run the engine (for a CPU: the ONNX file) that was built for `target`."""
    return target.backend == "onnxruntime" or runs_on_gpu(target)


def runs_on_gpu(target: Target) -> bool:
    """Whether this machine has a GPU that runs engines for `target`."""
    gpu = None if target.backend == "onnxruntime" else find_gpu()
    return gpu is not None and (
        not target.compute_capabilities or gpu.compute_capability in target.compute_capabilities
    )


def quantized_runner(setup: ValidationSetup) -> Runner:
    """A runner of the engine where this machine can run it, else of its ONNX file in ONNX Runtime.

    ONNX Runtime's graph optimizations are off, so that each Q and DQ computes what ONNX specifies.
    """
    workspace, target = setup.workspace, setup.target
    if target.backend == "onnxruntime":
        return OnnxRuntimeRunner(workspace.engine, name="INT8")
    if engine_can_run(target):
        return _engine_runner(workspace.engine, target, "INT8 engine")
    path = workspace.trt_onnx if setup.suppression is None else workspace.end2end_onnx
    return OnnxRuntimeRunner(path, optimize=False, name="INT8")


@contextmanager
def evaluation_runner(setup: ValidationSetup) -> Iterator[Runner]:
    """A runner of the model that INT8's accuracy is measured with.

    An engine with NMS drops boxes of low scores, which mAP needs. In its place runs a copy that
    differs in its thresholds only: an engine where this machine can run one, else ONNX Runtime.
    """
    if setup.suppression is None:
        with quantized_runner(setup) as active:
            yield active
        return
    with temporary_folder() as folder:
        files = replace(
            setup.workspace,
            end2end_onnx=Path(folder, "evaluation.onnx"),
            engine=Path(folder, "evaluation.engine"),
        )
        backend = setup.target.backend
        write_with_nms(files.trt_onnx, files.end2end_onnx, EVALUATION, backend)
        if engine_can_run(setup.target):
            options = BuildOptions(setup.target.compute_capabilities, batch=(1, 1, BATCH))
            write_engine(files.end2end_onnx, files.engine, setup.target, options)
        with quantized_runner(replace(setup, workspace=files)) as active:
            yield active


def _compare_nms(setup: ValidationSetup, card: ModelCard, feeds: Feeds) -> End2End | None:
    """Compare the boxes that come out of the engine, or its graph, with those NumPy finds in the maps.

    The maps are the Q/DQ graph's in ONNX Runtime.
    """
    suppression = setup.suppression
    if suppression is None:
        return None
    wanted: list[Detections] = []
    found: list[Detections] = []
    maps = OnnxRuntimeRunner(setup.workspace.trt_onnx, optimize=False)
    with maps, quantized_runner(setup) as end2end:
        for feed in feeds:
            wanted += detections(maps.infer(feed), card, suppression)
            found += detections(end2end.infer(feed), card)
    return End2End(
        **asdict(suppression),
        identical=100 * sum(map(_is_same, wanted, found)) / len(wanted),
        agreement=round(detection_agreement(wanted, found), 2),
        num_images=len(wanted),
        backend=end2end.backend,
    )


def _is_same(wanted: Detections, found: Detections) -> bool:
    """Same classes in the same order, scores to 1e-4, boxes to a hundredth of a pixel."""
    return (
        np.array_equal(wanted.labels, found.labels)
        and np.allclose(wanted.scores, found.scores, rtol=0, atol=1e-4)
        and np.allclose(wanted.boxes, found.boxes, rtol=0, atol=1e-2)
    )


def _compare_outputs(
    setup: ValidationSetup, card: ModelCard, feeds: Feeds
) -> dict[str, Numerics | None]:
    """The Q/DQ graph against FP32 shows what quantization did, the engine against it what TensorRT did.

    An end-to-end engine has the network's own outputs no more, and what sorts or selects is compared
    in front of it, where engines show nothing.
    """
    workspace, target, is_float = setup.workspace, setup.target, setup.reference == "float"
    files = [setup.reference_onnx, workspace.trt_onnx]
    if setup.is_quantized_file:
        files += [workspace.qdq_onnx] if is_float else []
        card = without_missing_cut(files, card)
    with with_cut(files, card) as (reference_onnx, qdq_onnx, *file_onnx):
        runners: list[Runner] = [
            OnnxRuntimeRunner(reference_onnx, optimize=is_float, name="reference"),
            OnnxRuntimeRunner(qdq_onnx, optimize=False, name="Q/DQ"),
        ]
        pairs = {"numerics": (0, 1)}
        for path in file_onnx:
            runners.append(OnnxRuntimeRunner(path, optimize=False, name="file"))
            pairs["file_numerics"] = (2, 1)
        last = len(runners)
        if setup.suppression is None and runs_on_gpu(target):
            runners.append(_engine_runner(workspace.engine, target, "INT8"))
            runners.append(_engine_runner(workspace.fp16_engine, target, "FP16"))
            pairs |= {"engine_numerics": (1, last), "fp16_numerics": (0, last + 1)}
        elif setup.suppression is None and engine_can_run(target):
            runners.append(OnnxRuntimeRunner(workspace.engine, name="INT8"))
            pairs |= {"engine_numerics": (1, last)}
        compared = compare_outputs(runners, list(pairs.values()), feeds, card)
    found = {key: numerics or None for key, numerics in zip(pairs, compared, strict=True)}
    keys = ("numerics", "file_numerics", "engine_numerics", "fp16_numerics")
    return {key: found.get(key) for key in keys}


def _compare_layers(setup: ValidationSetup, feeds: Feeds) -> tuple[LayerSnr, ...]:
    """Layers against FP32; of a quantized file those of the file as it came, if its float model is there."""
    files = setup.workspace
    if not setup.is_quantized_file:
        qdq, rows = files.qdq_onnx, setup.rows
        return compare_layers(files.fp32_onnx, files.trt_onnx, feeds, qdq, rows=rows)
    if setup.reference == "file":
        return ()
    return compare_layers(files.fp32_onnx, files.qdq_onnx, feeds, is_shifted=False)


def _engine_runner(engine: Path, target: Target, name: str) -> TensorRTRunner:
    """It is trusted: this run has built it."""
    return TensorRTRunner(engine, target.backend, name, trusted=True)


def _feeds(samples: FeedSet, setup: ValidationSetup) -> Iterator[dict[str, Any]]:
    for feed in islice(samples.feeds(setup.batch), max(1, NUM_COMPARED // setup.batch)):
        yield {
            one.name: pad_batch(feed[one.name], setup.batch_size) if one.batched else feed[one.name]
            for one in samples.inputs
        }


def find_histograms(setup: ValidationSetup, samples: FeedSet) -> dict[str, LayerHistograms]:
    """What the quantized layers read on a few samples, by layer."""
    feed = next(_feeds(samples, setup))
    if setup.batch_size is None:
        feed = {
            one.name: feed[one.name][:SAMPLES] if one.batched else feed[one.name]
            for one in samples.inputs
        }
    fp32, weights = setup.workspace.fp32_onnx, setup.weights
    if not weights and fp32.exists():
        weights = read_float_weights(fp32)
    return layer_histograms(setup.workspace.qdq_onnx, feed, weights)


def _is_constant(feeds: Feeds) -> bool:
    """Whether every input is of one value: no comparison on it means anything."""
    return all(
        bool((feed[name] == value.flat[0]).all())
        for name, value in feeds[0].items()
        for feed in feeds
    )


def _latency(setup: ValidationSetup, card: ModelCard, feeds: Feeds) -> ModelLatency | None:
    """Latency of one inference: of INT8's engine and FP16's on a GPU, of both ONNX files for the target `cpu`.

    The two take turns. None where no GPU here runs the engine: the time of its graph in ONNX Runtime, which
    does not fuse it, says nothing.
    """
    workspace, target = setup.workspace, setup.target
    batch = feeds[0]
    if not setup.batch_size:
        batch = resize_feed(batch, card.inputs, 1)
    if runs_on_gpu(target):
        engine = _engine_runner(workspace.engine, target, "INT8 engine")
        fp16_engine = _engine_runner(workspace.fp16_engine, target, "FP16 engine")
        with engine, fp16_engine:
            quantized, fp16 = compare_latency((engine, fp16_engine), (batch, batch))
        return _latency_entry(quantized, fp16=fp16)
    if target.backend != "onnxruntime":
        return None
    fp32 = OnnxRuntimeRunner(workspace.fp32_onnx, name="FP32")
    int8 = OnnxRuntimeRunner(workspace.engine, name="INT8")
    with fp32, int8:
        reference, quantized = compare_latency((fp32, int8), (batch, batch))
    return _latency_entry(quantized, fp32=reference)


def _latency_entry(
    quantized: Latency, fp32: Latency | None = None, fp16: Latency | None = None
) -> ModelLatency:
    alone = None
    if fp16 is not None:
        alone = DeviceLatency(_percentiles(fp16.device_only), _percentiles(quantized.device_only))
    return ModelLatency(
        fp32=_percentiles(fp32),
        fp16=_percentiles(fp16),
        quantized=_percentiles(quantized),
        device_only=alone,
        backend=quantized.backend,
        device=quantized.device,
    )


def _percentiles(latency: Latency | None) -> Percentiles | None:
    if latency is None:
        return None
    return Percentiles(*(round(value, 4) for value in (latency.p50, latency.p90, latency.p99)))
