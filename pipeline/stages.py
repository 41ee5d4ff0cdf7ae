"""The road: one function per stage, and one that walks them all.

Each stage reads the files of the stages before it and nothing else, so any of them can run alone,
and one whose inputs did not change is skipped.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from reptrt.calibrators.quantized.biases import round_biases
from reptrt.calibrators.registry import create_calibrator
from reptrt.calibrators.sensitivity import find_sensitive_layers
from reptrt.calibrators.settings import Settings
from reptrt.calibrators.state import (
    dump_scales,
    load_calibration,
    readable_scales,
    save_calibration,
)
from reptrt.engines.artifacts import file_sha256, replace_when_done, write_json
from reptrt.engines.surgery import clean
from reptrt.engines.target import load_backend
from reptrt.models.card import ModelCard
from reptrt.models.load import LoadedModel
from reptrt.pipeline.build_options import build_inputs, build_options
from reptrt.pipeline.data.datasets import (
    DetectionSet,
    EvaluationSet,
    open_evaluation,
)
from reptrt.pipeline.data.demo_data import evaluation_scenes
from reptrt.pipeline.data.torch_batches import calibration_batches
from reptrt.pipeline.engine_file import write_engine
from reptrt.pipeline.export.append_nms import append_end2end, require_detector
from reptrt.pipeline.export.export import export_float, export_qdq
from reptrt.pipeline.export.prepare import code_sha256, fixed_batch, prepare_network
from reptrt.pipeline.fp16_engine import make_rival
from reptrt.pipeline.model_card import read_card
from reptrt.pipeline.report.collect import collect_report
from reptrt.pipeline.report.example_images import draw_pictures
from reptrt.pipeline.report.html import write_html
from reptrt.pipeline.run import Run, require_measurable
from reptrt.pipeline.validation.validate import engine_can_run, runs_on_gpu, validate_files
from reptrt.pipeline.workspace import discard, read_artifact, require


def run_pipeline(run: Run) -> dict[str, Any]:
    """Checkpoint in, validated engine and report out."""
    load_backend(run.target)  # what is missing is said now, not after calibration
    build_options(run.recipe, run.target)
    require_boxes(run)
    open_labelled(run, run.loaded)
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
        network = prepare_network(run.loaded, recipe, recording=run.recording)
        batches = calibration_batches(run.images, network.card.batch_size, recipe.device)
        found = find_sensitive_layers(network.quantized, batches, run.min_snr, run.progress)
        write_json(found, workspace.sensitivity)

    inputs = {**network_inputs(run), "min_snr": run.min_snr}
    run.stage("sensitivity", inputs, "sensitivity", shared=True).run(work)


def calibrate(run: Run) -> None:
    """Choose scales: `calibration.safetensors`, and `scales.json` for people."""
    recipe, workspace = run.recipe, run.workspace
    choose_float_layers(run)
    inputs = {
        **network_inputs(run),
        "reconstruction": run.reconstruction.model_dump(mode="json"),
        "calibrator": run.calibrator,
        "sensitive": sorted(run.sensitive),
    }
    stage = run.stage("calibrate", inputs, "calibration", "scales", shared=True)

    def work() -> None:
        quantized = run.network.quantized
        batches = calibration_batches(run.images, run.network.card.batch_size, recipe.device)
        with stage.unfinished() as checkpoint:
            settings = Settings(recipe.seed, run.reconstruction, int(recipe.max_memory), checkpoint)
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
        tail = run.loaded.tail
        export_float(network.float_graph, workspace.fp32_onnx, network.card, batch_size, tail=tail)
        run.progress("export ONNX", 1, steps)
        export_qdq(
            network.quantized,
            workspace.qdq_onnx,
            network.card,
            batch_size,
            precision=run.precision,
            tail=tail,
            islands=run.loaded.islands,
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
        "fp32_onnx": file_sha256(require(workspace.fp32_onnx, "export")),
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
        tallies = read_artifact(workspace.validation, "validate")["shown"]
        pictures = draw_pictures(run.trial, card, evaluation, tallies)
    kernels = read_artifact(workspace.fusion, "build")["fused_kernels"]
    write_json(content, workspace.report_json)
    write_html(content, kernels, pictures, workspace.report_html)
    return content


def require_boxes(run: Run) -> None:
    """Refuse an end-to-end engine of a network without boxes.

    Raises:
        End2EndError: the recipe asks for it.
    """
    if run.recipe.end2end:
        require_detector(run.recipe.model, run.loaded.task == "detection")


def open_labelled(run: Run, card: ModelCard | LoadedModel) -> EvaluationSet | None:
    """Labelled images of this run, None where there are none.

    Raises:
        DataError: they are not what the network wants, or it does nothing that could be measured.
    """
    require_measurable(run.recipe, card.task)
    folder = run.recipe.evaluation or evaluation_scenes(run.recipe.model, run.scenes)
    if folder is None:
        return None
    return open_evaluation(folder, card.task, card.preprocess, card.num_classes, card.classes)
