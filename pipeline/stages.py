"""The road: one function per stage; `reptrt.pipeline.road` walks them all.

Each stage reads the files of the stages before it and nothing else, so any of them can run alone,
and one whose inputs did not change is skipped.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, replace

import numpy as np
import torch
from numpy.typing import NDArray

from reptrt.calibrators.channels.rewrite import scaled_rows
from reptrt.calibrators.names import AUTO
from reptrt.calibrators.progress import share_of
from reptrt.calibrators.quantized.run_nodes import float_copy
from reptrt.calibrators.sensitivity import (
    MARGIN,
    Aim,
    Sensitivity,
    find_sensitive_in_calibrated,
    find_sensitive_layers,
)
from reptrt.calibrators.state import (
    dump_scales,
    load_calibration,
    read_result,
    readable_scales,
    save_calibration,
)
from reptrt.engines.artifacts import file_sha256, replace_when_done, write_json
from reptrt.engines.cost.constants import FITTED
from reptrt.engines.report_schema import FusionReport, Report, Validation
from reptrt.pipeline.choose_scales import choose_scales, is_close_enough
from reptrt.pipeline.data.feeds import FeedSet, PictureFeeds
from reptrt.pipeline.data.in_memory import MetricFunction
from reptrt.pipeline.data.torch_batches import calibration_batches, naming_images
from reptrt.pipeline.engine.build import build_inputs, build_options, write_engine
from reptrt.pipeline.engine.cut_tail import cut_tail, require_kernels
from reptrt.pipeline.engine.fp16_cost import compare_with_fp16
from reptrt.pipeline.engine.fp16_engine import make_fp16_engine
from reptrt.pipeline.export.append_nms import write_with_nms
from reptrt.pipeline.export.as_is import export_as_is, keep_scales
from reptrt.pipeline.export.calibrated import export_calibrated
from reptrt.pipeline.export.export import export_float
from reptrt.pipeline.export.prepare import prepare_network
from reptrt.pipeline.gate import open_unlabelled, require_labels, verdict_of
from reptrt.pipeline.model_card import read_card
from reptrt.pipeline.placing import (
    choose_apart_concats,
    choose_channel_factors,
    image_inputs,
    keep_layers,
    network_inputs,
    place,
)
from reptrt.pipeline.recipe import Calibration
from reptrt.pipeline.report.collect import collect_report, layer_histograms
from reptrt.pipeline.report.examples import find_examples
from reptrt.pipeline.report.html import write_html
from reptrt.pipeline.require import require_boxes, require_exported
from reptrt.pipeline.run import Run, open_labelled
from reptrt.pipeline.run_recipe import recipe_sha256
from reptrt.pipeline.validation.likeness import measure_likeness
from reptrt.pipeline.validation.validate import (
    engine_can_run,
    find_histograms,
    runs_on_gpu,
    validate_files,
)
from reptrt.pipeline.workspace.folder import discard, read_artifact, require, require_same

logger = logging.getLogger(__name__)

_CHECKED_IMAGES = 4


def check_import(run: Run) -> None:
    """Compare what an ONNX file became with ONNX Runtime, on calibration images.

    Raises:
        OnnxFileError: they differ.
    """
    size = run.plan.batch_size or _CHECKED_IMAGES
    feed = next(iter(run.samples.feeds(size)))
    run.loaded.require_same_as_file(*(feed[one.name] for one in run.loaded.inputs))


def choose_float_layers(run: Run, aim: Aim) -> None:
    """Write `sensitivity.json`, the layers that INT8 would cost too much, where outputs need it.

    Most detectors need it, and the baselines tell which layers. Other networks are calibrated first,
    without a layer left out, and keep that where every output is close enough; unless more than that
    is asked for.

    Args:
        run: whose layers.
        aim: where to stop; an infinite gain leaves everything float.
    """
    plan, workspace = run.plan, run.workspace
    if not (aim.min_snr or aim.gain) or run.is_float:
        keep_layers(run, aim)
        return
    savings = run.priced.savings if run.priced else None
    is_open = run.loaded.task != "detection" and not aim.gain
    inputs = {**image_inputs(run), "device": plan.device, "savings": savings, "aim": str(aim)}
    if is_open:
        inputs |= {**calibration_inputs(run), "least_snr": plan.least_snr}
    stage = run.stage("sensitivity", inputs, "sensitivity", shared=True)
    if is_open and not stage.is_done:
        keep_layers(run, aim)
        calibrate_once(run)
        result = read_result(require(workspace.calibration, "calibrate"))
        enough = plan.least_snr + (0.0 if run.recipe.min_snr is None else MARGIN)
        if is_close_enough(result, enough):
            return
        logger.warning(
            "all in INT8, the worst output has %s dB, and %.1f dB would be enough: leaving layers float",
            result.snr_db, enough,
        )  # fmt: skip

    def work() -> None:
        fp8_attention = run.is_faster_in_fp8 and not aim.float_attention
        placed = replace(run.placed, fp8_attention=fp8_attention)
        network = prepare_network(run.loaded, plan, run.recording, placed)
        model = network.quantized
        batches = calibration_batches(run.samples, network.card.batch_size, plan.device)
        if math.isinf(aim.gain):
            found = Sensitivity(dict.fromkeys(model.placement.layers.values()))
        elif is_open:
            reference, progress = float_copy(model), share_of(run.progress, "sensitivity", 0.0, 1.0)
            load_calibration(model, workspace.calibration)
            found = find_sensitive_in_calibrated(model, batches, aim, reference, progress, savings)
        else:
            found = find_sensitive_layers(model, batches, aim, run.progress, savings)
        write_json(replace(found, float_attention=aim.float_attention), workspace.sensitivity)

    with naming_images(run.samples):
        stage.run(work)


def calibration_inputs(run: Run) -> dict[str, object]:
    """What a calibration depends on, besides the layers that it leaves float."""
    plan = run.plan
    is_open = run.recipe.calibrator == AUTO and plan.min_snr > 0
    return {
        **image_inputs(run),
        "calibration": plan.section(Calibration),
        "threads": plan.threads,
        "tries_until": plan.least_snr if is_open else None,
    }


def calibrate(run: Run, aim: Aim | None = None) -> None:
    """Choose scales: `calibration.safetensors`, and `scales.json` for people.

    Args:
        run: what is calibrated.
        aim: until which layers are left float; None takes that of the plan.
    """
    if run.plan.is_quantized:
        keep_scales(run)
        return
    if not run.workspace.calibration.exists():
        if not run.is_float:  # images that are not there are said before anything is written
            calibration_batches(run.samples, run.plan.batch_size, run.plan.device)
        export_reference(run)
        require_kernels(run)
    choose_apart_concats(run)
    place(run)
    choose_channel_factors(run)
    of_worst = run.loaded.task != "detection"  # of whose maps every part has its share in the boxes
    half_rest = of_worst and run.plan.precision == "fp16"
    chosen = Aim(run.plan.min_snr, of_worst=of_worst, half_rest=half_rest)
    if run.recipe.min_snr is not None:  # who states a bound wants it, at the price of INT8 layers
        chosen = replace(chosen, most=1.0)
    choose_float_layers(run, aim or chosen)
    calibrate_once(run)


def calibrate_once(run: Run) -> None:
    """Choose scales, with the layers in float that `sensitivity.json` names."""
    workspace = run.workspace
    inputs = {
        **calibration_inputs(run),
        "sensitive": sorted(run.sensitive.layers),
        "float_attention": run.sensitive.float_attention,
    }
    stage = run.stage("calibrate", inputs, "calibration", "scales", shared=True)

    def work() -> None:
        check_import(run)
        with stage.unfinished() as checkpoint:
            found = choose_scales(run, checkpoint)
        quantized = found.network.quantized
        with replace_when_done(workspace.calibration) as path:
            save_calibration(quantized, path, found.result)
        with replace_when_done(workspace.scales) as path:
            path.write_text(dump_scales(readable_scales(quantized)))

    with naming_images(run.samples):
        stage.run(work)


def export(run: Run) -> None:
    """Write the float reference, the Q/DQ model, and the Q/DQ model as TensorRT wants it.

    Raises:
        WorkspaceError: there is no calibration, or it is of another network or other bits.
    """
    plan, workspace = run.plan, run.workspace
    if not plan.is_quantized:
        require(workspace.calibration, "calibrate")
        require_same(workspace.folder, "calibrate", network_inputs(run))
    require_boxes(run)
    export_reference(run)
    inputs = {
        **run.exported_from,
        "batch_size": plan.batch_size,
        "form": plan.form,
        "quantize": plan.quantize,
    }

    def work() -> None:
        if plan.is_quantized:
            export_as_is(run)
        else:
            export_calibrated(run)

    run.stage("export", inputs, "qdq_onnx", "trt_onnx").run(work)
    append_nms(run)


def export_reference(run: Run) -> None:
    """Write the float network, which is the same for all calibrators and targets."""
    inputs = {"network": run.network_sha256, "batch_size": run.plan.batch_size}

    def work() -> None:
        graph, card, tail = run.recording.float_graph, run.card, run.loaded.tail
        export_float(graph, run.workspace.fp32_onnx, card, card.batch_size, tail=tail)

    run.stage("fp32", inputs, "fp32_onnx", shared=True).run(work)


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
        lambda: write_with_nms(workspace.trt_onnx, workspace.end2end_onnx, suppression, backend)
    )


def build(run: Run) -> None:
    """Build the engine, and say which layers of it run in INT8: `fusion.json`."""
    recipe, workspace, target = run.recipe, run.workspace, run.target
    require(workspace.trt_onnx, "export")
    if recipe.end2end:
        require(workspace.end2end_onnx, "end2end")
    cut_tail(run)
    read = read_card(run.workspace.trt_onnx).inputs
    inputs = {"onnx": file_sha256(run.engine_onnx), **build_inputs(recipe, target, read)}

    def work() -> None:
        options = build_options(recipe, target, read)
        fusion = write_engine(run.engine_onnx, workspace.engine, target, options, run.progress)
        write_json(fusion, workspace.fusion)

    run.stage("build", inputs, "engine", "fusion").run(work)
    price(run)


def price(run: Run) -> None:
    """Write `cost.json`: INT8's engine against FP16's on the target, predicted without a GPU."""
    recipe, workspace, sheet = run.recipe, run.workspace, run.target.data_sheet
    if sheet is None or run.target.backend == "onnxruntime":
        discard(workspace.cost)
        return
    inputs = {
        "onnx": file_sha256(run.engine_onnx),
        "target": run.target.name,
        "batch": recipe.opt_batch,
        "model": repr((FITTED, sheet)),
    }

    def work() -> None:
        compared = compare_with_fp16(
            run.engine_onnx,
            run.recording.float_graph,
            run.card,
            run.target,
            recipe.opt_batch,
            recipe.suppression,
        )
        write_json(compared, workspace.cost)

    run.stage("cost", inputs, "cost").run(work)


def validate(run: Run) -> None:
    """Compare the Q/DQ model with the float one, and the engine where it can run."""
    require_labels(run)
    workspace, suppression = run.workspace, run.recipe.suppression
    require_exported(run)
    card = read_card(workspace.trt_onnx)
    evaluation = open_labelled(run, card)
    samples: FeedSet
    unlabelled = open_unlabelled(run)
    if unlabelled is not None:
        samples = unlabelled.samples
    elif evaluation is None or isinstance(evaluation, MetricFunction):
        samples = run.samples
    else:
        samples = PictureFeeds(evaluation.images, card.inputs)
    others = run.samples_of_other_sizes(card)
    make_fp16_engine(run)
    engine = None
    if engine_can_run(run.target):
        engine = file_sha256(require(workspace.engine, "build"))
        require_same(workspace.folder, "build", {"onnx": file_sha256(run.engine_onnx)})
    inputs = {
        "fp32_onnx": file_sha256(workspace.fp32_onnx),
        "qdq_onnx": file_sha256(workspace.qdq_onnx),
        "reference": run.validation_setup.reference,
        "trt_onnx": file_sha256(workspace.trt_onnx),
        "engine": engine,
        "fp16_engine": file_sha256(workspace.fp16_engine) if runs_on_gpu(run.target) else None,
        "images": samples.fingerprint if evaluation is None else evaluation.fingerprint,
        "suppression": None if suppression is None else asdict(suppression),
        "without_labels": unlabelled is not None,
    }

    def work() -> None:
        setup = run.validation_setup
        if run.channels and not run.plan.is_quantized:
            model = run.make_network().quantized
            rows = scaled_rows(model, run.channels)
            weights = {name: model.weight_of(name) for name in model.weight_quantizers}
            setup = replace(setup, rows=_as_arrays(rows), weights=_as_arrays(weights))
        results = validate_files(setup, card, samples, evaluation, run.progress, others)
        if unlabelled is not None:
            found = measure_likeness(setup, card, unlabelled, results.numerics, run.progress)
            results = replace(results, likeness=found)
        write_json(results, workspace.validation)
        write_json(find_histograms(setup, samples), workspace.histograms)

    run.stage("validate", inputs, "validation", "histograms").run(work)


def _as_arrays(tensors: Mapping[str, torch.Tensor]) -> dict[str, NDArray[np.float32]]:
    return {name: one.detach().float().numpy() for name, one in tensors.items()}


def report(run: Run) -> Report:
    """Put everything known about this run into `report.json` and `report.html`."""
    require_labels(run)
    workspace = run.workspace
    require(workspace.validation, "validate")
    require_exported(run)
    require_same(workspace.folder, "validate", {"trt_onnx": file_sha256(workspace.trt_onnx)})
    require(workspace.fusion, "build")
    require_same(workspace.folder, "build", {"onnx": file_sha256(run.engine_onnx)})
    made: list[Report] = []
    inputs = {
        "recipe": recipe_sha256(run.recipe, run.target.name),
        "validation": file_sha256(workspace.validation),
        "fusion": file_sha256(workspace.fusion),
    }
    stage = run.stage("report", inputs, "report_json", "report_html")
    stage.run_always(lambda: made.append(_write_report(run)))
    return made[0]


def _write_report(run: Run) -> Report:
    workspace = run.workspace
    content = collect_report(
        workspace, run.final_plan, run.calibration_result, verdict_of(run), run.command
    )
    card = read_card(workspace.trt_onnx)
    validation = read_artifact(workspace.validation, "validate", Validation)
    examples = find_examples(run.validation_setup, card, open_labelled(run, card), validation)
    kernels = read_artifact(workspace.fusion, "build", FusionReport).fused_kernels
    histograms = layer_histograms(workspace, run.calibration_result)
    write_json(content, workspace.report_json)
    write_html(content, kernels, examples, workspace.report_html, histograms)
    return content
