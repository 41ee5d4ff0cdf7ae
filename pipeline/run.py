"""The road: one function per stage, and one that walks them all.

Each stage reads the files of the stages before it and nothing else, so any of them can run alone,
and one whose inputs did not change is skipped.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from calibrators.base import Progress
from calibrators.biases import round_biases
from calibrators.registry import choose_calibrator, create_calibrator
from calibrators.sensitivity import find_sensitive_layers
from calibrators.settings import Settings
from calibrators.state import dump_scales, load_calibration, readable_scales, save_calibration
from engines.artifacts import file_sha256, replace_when_done, write_json
from engines.target import Target, load_backend
from models.attention import has_attention
from models.load import LoadedModel, load_model
from models.spec import PreprocessOverrides, Task
from pipeline.build_options import build_inputs, build_options
from pipeline.collect import collect_report
from pipeline.datasets import (
    DataError,
    DetectionSet,
    EvaluationSet,
    ImageSet,
    open_evaluation,
    open_images,
)
from pipeline.demo_data import calibration_scenes, evaluation_scenes
from pipeline.end2end import append_end2end, require_detector
from pipeline.engine_file import write_engine
from pipeline.export import Precision, export_float, export_qdq
from pipeline.gallery import draw_pictures
from pipeline.model_card import ModelCard, read_card
from pipeline.network import Network, code_sha256, fixed_batch, prepare_network
from pipeline.recipe import Recipe
from pipeline.report import write_html
from pipeline.rival import make_rival
from pipeline.surgery import clean
from pipeline.torch_batches import calibration_batches
from pipeline.validate import Trial, engine_can_run, runs_on_gpu, validate_files
from pipeline.workspace import Stage, Workspace, discard, require

DETECTOR_SNR = 20.0
"""Of a detector's outputs, in dB: what YOLOv6Lite needs (docs/results.md)."""


@dataclass(frozen=True)
class Run:
    """One recipe on its way through the stages.

    Attributes:
        recipe: what to do.
        target: where the engine will run.
        workspace: where the files go.
        command: what the user typed, for sidecars and report.
        progress: called as work advances.
    """

    recipe: Recipe
    target: Target
    workspace: Workspace
    command: str
    progress: Progress

    @property
    def scenes(self) -> Path:
        """Where the demo's generated images are kept, shared by all runs."""
        return self.workspace.folder.parents[2] / "demo-scenes"

    @cached_property
    def loaded(self) -> LoadedModel:
        """Float network with its weights; read when a stage first needs it."""
        recipe = self.recipe
        overrides = PreprocessOverrides(
            recipe.image_size, recipe.mean, recipe.std, recipe.layout, recipe.channels
        )
        loaded = load_model(
            recipe.model,
            recipe.weights,
            overrides,
            lambda done, total: self.progress("download weights", done, total or 0),
            recipe.task,
        )
        require_measurable(recipe, loaded.task)
        return loaded

    @cached_property
    def network(self) -> Network:
        """Traced network with quantizers; uncalibrated when first made."""
        return prepare_network(self.loaded, self.recipe, self.sensitive)

    @property
    def sensitive(self) -> dict[str, float]:
        """Layers that stay float, as the stage `sensitivity` found; none where it did not run."""
        path = self.workspace.sensitivity
        layers: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}
        return layers

    @property
    def min_snr(self) -> float:
        """SNR at the outputs, in dB, for which layers stay float; 0 quantizes them all."""
        if self.recipe.min_snr is not None:
            return self.recipe.min_snr
        return DETECTOR_SNR if self.loaded.task == "detection" else 0.0

    @cached_property
    def calibrator(self) -> str:
        """How scales are chosen: what `auto` stands for, or what the recipe says."""
        recipe = self.recipe
        bits = recipe.weight_bits, recipe.activation_bits
        return choose_calibrator(recipe.calibrator, self.loaded.module, min(bits))

    @cached_property
    def precision(self) -> Precision:
        """Type of everything that is not INT8: what the recipe says, or what suits the network."""
        on_gpu = self.target.backend != "onnxruntime"
        suitable: Precision = "fp16" if on_gpu and has_attention(self.loaded.module) else "fp32"
        return self.recipe.precision or suitable

    @property
    def engine_onnx(self) -> Path:
        """What the engine is built from."""
        return self.workspace.end2end_onnx if self.recipe.end2end else self.workspace.trt_onnx

    @property
    def trial(self) -> Trial:
        """What is validated, and how it runs."""
        recipe = self.recipe
        batch_size = read_card(self.workspace.trt_onnx).batch_size
        return Trial(self.workspace, self.target, batch_size, recipe.suppression, recipe.max_batch)

    @cached_property
    def images(self) -> ImageSet:
        """Calibration images."""
        recipe = self.recipe
        folder = recipe.data or calibration_scenes(recipe.model, self.scenes)
        limit = recipe.num_samples or create_calibrator(self.calibrator).default_num_samples
        return open_images(folder, self.loaded.preprocess, limit=limit, seed=recipe.seed)

    def stage(self, name: str, inputs: dict[str, Any], *artifacts: str) -> Stage:
        """Stage `name` that writes the workspace's `artifacts`."""
        paths = [getattr(self.workspace, artifact) for artifact in artifacts]
        return Stage(name, self.command, self.recipe.seed, inputs, paths)


def run_pipeline(run: Run) -> dict[str, Any]:
    """Checkpoint in, validated engine and report out."""
    load_backend(run.target)  # what is missing is said now, not after calibration
    build_options(run.recipe, run.target)
    require_folder(run.recipe.evaluation)
    require_boxes(run)
    calibrate(run)
    export(run)
    build(run)
    validate(run)
    return report(run)


def network_inputs(run: Run) -> dict[str, Any]:
    """What placement and calibration depend on."""
    loaded = run.loaded
    chosen = run.recipe.model_dump(
        mode="json",
        include={
            "weight_bits", "activation_bits", "first_last_bits", "softmax", "seed", "device",
            "batch_size", "keep_float", "quantize_head",
        },
    )  # fmt: skip
    return {
        **chosen,
        "code": code_sha256(loaded.module),
        "weights": loaded.weights_sha256,
        "task": loaded.task,
        "preprocess": repr(loaded.preprocess),
        "images": run.images.fingerprint,
    }


def choose_float_layers(run: Run) -> None:
    """Write `sensitivity.json`, the layers that INT8 would cost too much, if there is a bound."""
    recipe, workspace = run.recipe, run.workspace
    if run.min_snr == 0:
        discard(workspace.sensitivity)
        return

    def work() -> None:
        network = prepare_network(run.loaded, recipe)
        batches = calibration_batches(run.images, network.card.batch_size, recipe.device)
        found = find_sensitive_layers(network.quantized, batches, run.min_snr, run.progress)
        write_json(found, workspace.sensitivity)

    inputs = {**network_inputs(run), "min_snr": run.min_snr}
    run.stage("sensitivity", inputs, "sensitivity").run(work)


def calibrate(run: Run) -> None:
    """Choose scales: `calibration.safetensors`, and `scales.json` for people."""
    recipe, workspace = run.recipe, run.workspace
    choose_float_layers(run)
    inputs = {
        **network_inputs(run),
        "reconstruction": recipe.reconstruction.model_dump(mode="json"),
        "calibrator": run.calibrator,
        "sensitive": sorted(run.sensitive),
    }
    stage = run.stage("calibrate", inputs, "calibration", "scales")

    def work() -> None:
        quantized = run.network.quantized
        batches = calibration_batches(run.images, run.network.card.batch_size, recipe.device)
        with stage.unfinished() as checkpoint:
            settings = Settings(
                recipe.seed, recipe.reconstruction, int(recipe.max_memory), checkpoint
            )
            calibrator = create_calibrator(run.calibrator, settings)
            result = calibrator.calibrate(quantized, batches, run.progress)
        round_biases(quantized)
        with replace_when_done(workspace.calibration) as path:
            save_calibration(quantized, path, replace(result, num_samples=len(run.images)))
        with replace_when_done(workspace.scales) as path:
            path.write_text(dump_scales(readable_scales(quantized)))

    stage.run(work)


def export(run: Run) -> None:
    """Write the float reference, the Q/DQ model, and the Q/DQ model as TensorRT wants it."""
    recipe, workspace = run.recipe, run.workspace
    require(workspace.calibration, "calibrate")
    require_boxes(run)
    inputs = {
        "calibration": file_sha256(workspace.calibration),
        "code": code_sha256(run.loaded.module),
        "weights": run.loaded.weights_sha256,
        "task": run.loaded.task,
        "preprocess": repr(run.loaded.preprocess),
        "batch_size": fixed_batch(run.loaded, recipe),
        "precision": run.precision,
    }

    def work() -> None:
        network, steps = run.network, 3
        load_calibration(network.quantized, workspace.calibration)
        batch_size = network.card.batch_size
        export_float(network.float_graph, workspace.fp32_onnx, network.card, batch_size)
        run.progress("export ONNX", 1, steps)
        export_qdq(
            network.quantized,
            workspace.qdq_onnx,
            network.card,
            batch_size,
            precision=run.precision,
        )
        run.progress("export ONNX", 2, steps)
        clean(workspace.qdq_onnx, workspace.trt_onnx)
        run.progress("export ONNX", 3, steps)

    run.stage("export", inputs, "fp32_onnx", "qdq_onnx", "trt_onnx").run(work)
    append_nms(run)


def append_nms(run: Run) -> None:
    """Write the model with decoding and NMS behind it, where the recipe asks for it."""
    workspace, suppression = run.workspace, run.recipe.suppression
    if suppression is None:
        discard(workspace.end2end_onnx)
        return
    backend = run.target.backend
    inputs = {
        "trt_onnx": file_sha256(workspace.trt_onnx),
        "suppression": asdict(suppression),
        "backend": backend,
    }
    run.stage("end2end", inputs, "end2end_onnx").run(
        lambda: append_end2end(workspace.trt_onnx, workspace.end2end_onnx, suppression, backend)
    )


def build(run: Run) -> None:
    """Build the engine, and say which layers of it run in INT8: `fusion.json`."""
    recipe, workspace, target = run.recipe, run.workspace, run.target
    require(run.engine_onnx, "export")
    inputs = {
        "onnx": file_sha256(run.engine_onnx),
        **build_inputs(recipe, target),
    }

    def work() -> None:
        options = build_options(recipe, target)
        fusion = write_engine(run.engine_onnx, workspace.engine, target, options, run.progress)
        write_json(fusion, workspace.fusion)

    run.stage("build", inputs, "engine", "fusion").run(work)


def validate(run: Run) -> None:
    """Compare the Q/DQ model with the float one, and the engine where it can run."""
    workspace, suppression = run.workspace, run.recipe.suppression
    card = read_card(require(workspace.trt_onnx, "export"))
    require(run.engine_onnx, "export")
    evaluation = open_labelled(run, card)
    samples = run.images if evaluation is None else evaluation.images
    make_rival(run)
    inputs = {
        "fp32_onnx": file_sha256(workspace.fp32_onnx),
        "trt_onnx": file_sha256(workspace.trt_onnx),
        "engine": (
            file_sha256(require(workspace.engine, "build")) if engine_can_run(run.target) else None
        ),
        "fp16_engine": file_sha256(workspace.fp16_engine) if runs_on_gpu(run.target) else None,
        "images": samples.fingerprint if evaluation is None else evaluation.fingerprint,
        "suppression": None if suppression is None else asdict(suppression),
    }

    def work() -> None:
        results = validate_files(run.trial, card, samples, evaluation, run.progress)
        write_json(results, workspace.validation)

    run.stage("validate", inputs, "validation").run(work)


def report(run: Run) -> dict[str, Any]:
    """Put everything known about this run into `report.json` and `report.html`."""
    workspace = run.workspace
    content = collect_report(workspace, run.recipe, run.precision, run.target.name, run.command)
    card = read_card(workspace.trt_onnx)
    evaluation = open_labelled(run, card)
    pictures = []
    if isinstance(evaluation, DetectionSet):
        tallies = json.loads(workspace.validation.read_text())["shown"]
        pictures = draw_pictures(run.trial, card, evaluation, tallies)
    kernels = json.loads(workspace.fusion.read_text())["fused_kernels"]
    write_json(content, workspace.report_json)
    write_html(content, kernels, pictures, workspace.report_html)
    return content


def require_folder(evaluation: Path | None) -> None:
    """Check that the labelled images exist.

    Raises:
        DataError: they do not.
    """
    if evaluation is not None and not evaluation.exists():
        raise DataError(f"{evaluation}: no such folder; give --eval one with labelled images")


def require_boxes(run: Run) -> None:
    """Refuse an end-to-end engine of a network without boxes.

    Raises:
        End2EndError: the recipe asks for it.
    """
    if run.recipe.end2end:
        require_detector(run.recipe.model, run.loaded.task == "detection")


def require_measurable(recipe: Recipe, task: Task) -> None:
    """Refuse to measure the accuracy of outputs whose meaning is unknown.

    Raises:
        DataError: the recipe asks for it.
    """
    asked = [
        flag
        for flag, value in (("--eval", recipe.evaluation), ("--max-drop", recipe.max_drop))
        if value is not None
    ]
    if task == "generic" and asked:
        raise DataError(
            f"{recipe.model}: the meaning of its outputs is unknown, so it has no accuracy for"
            f" {' and '.join(asked)}: leave them out, or say --task classification or detection"
        )


def open_labelled(run: Run, card: ModelCard) -> EvaluationSet | None:
    """Labelled images of this run, None where there are none."""
    require_measurable(run.recipe, card.task)
    folder = run.recipe.evaluation or evaluation_scenes(run.recipe.model, run.scenes)
    if folder is None:
        return None
    return open_evaluation(folder, card.task, card.preprocess, card.num_classes, card.classes)
