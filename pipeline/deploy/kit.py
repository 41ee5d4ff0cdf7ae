"""Gather a build kit: the typed ONNX file of a run, references, tolerances, expected precisions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import yaml

from reptrt.engines.artifacts import file_sha256
from reptrt.engines.build.builder import BuildOptions
from reptrt.engines.inspection.graph_tensors import read_tensors
from reptrt.engines.inspection.qdq_graph import read_weighted_layers
from reptrt.engines.kit.archive import write_kit
from reptrt.engines.kit.manifest import Manifest, SizedReferences
from reptrt.engines.kit.verification import (
    Arrays,
    References,
    derive_tolerances,
    run_in_batches,
    sample_axes,
    write_references,
)
from reptrt.engines.outputs.suppression import DEPLOYMENT
from reptrt.engines.partial import temporary_folder
from reptrt.engines.report_schema import FusionReport
from reptrt.engines.runtime.runners import OnnxRuntimeRunner
from reptrt.models.card import ModelCard
from reptrt.models.registry import find_model
from reptrt.pipeline.budget import calibrate_and_export
from reptrt.pipeline.data.batches import Draw
from reptrt.pipeline.data.datasets import open_samples
from reptrt.pipeline.data.demo_data import calibration_scenes
from reptrt.pipeline.deploy.passed import (
    Evidence,
    copy_with_evidence,
    find_evidence,
    require_passed,
)
from reptrt.pipeline.engine.build import build_options, open_shapes
from reptrt.pipeline.gate import require_labels
from reptrt.pipeline.model_card import read_card
from reptrt.pipeline.recipe import Recipe, slug
from reptrt.pipeline.report.collect import run_facts
from reptrt.pipeline.run import Run
from reptrt.pipeline.workspace.folder import read_artifact
from reptrt.pipeline.workspace.run_records import made_from

NUM_REFERENCES = 8
_OF_OTHER_SIZES = 2  # images; the largest size may have many pixels
_REFERENCES = "references.npz"
_LICENCES = """\
build.pyz: Apache License 2.0, https://www.apache.org/licenses/LICENSE-2.0

{onnx}: the weights of {model}. {weights}

{references}: calibration images as the network sees them; they stay under the terms that you got them under.
"""


class KitError(ValueError):
    """There is nothing that a kit could build."""

    exit_code = 2


def make_kit(run: Run, archive: Path | None = None) -> Path:
    """Calibrate and export where that is not done yet, and write the kit; return its path.

    Args:
        run: what the engine is made of.
        archive: a .tar.gz; None puts `<model>-<target>-kit.tar.gz` into the workspace.

    Raises:
        KitError: the target builds no engine, or `archive` is no .tar.gz.
        GateError: the gate failed, and the recipe does not force the kit.
    """
    require_labels(run)
    name = slug(run.recipe.model)
    archive = archive or run.workspace.folder / f"{name}-{run.target.name}-kit.tar.gz"
    if run.target.backend == "onnxruntime":
        raise KitError(
            f"target '{run.target.name}' builds no engine: what `reptrt export` writes runs as it is"
        )
    if not archive.name.endswith(".tar.gz"):
        raise KitError(f"{archive}: a kit is a .tar.gz file")
    calibrate_and_export(run)
    evidence = find_evidence(run, require_passed(run, str(archive)))
    card = read_card(run.workspace.trt_onnx)
    run.progress("make kit", 0, 3)
    measured = _references(run, card)
    run.progress("make kit", 1, 3)
    manifest = _describe(run, card, measured, evidence)
    run.progress("make kit", 2, 3)
    with temporary_folder() as folder:
        model = Path(folder, run.engine_onnx.name)
        copy_with_evidence(run.engine_onnx, model, evidence)
        stored = {_file_of(label): Path(folder, _file_of(label)) for label in measured}
        for label, (_, references) in measured.items():
            write_references(references, stored[_file_of(label)])
        files: dict[str, bytes | Path] = {
            model.name: model,
            **stored,
            "recipe.yaml": _recipe_text(run.recipe).encode(),
            "LICENCES.txt": _licences(run).encode(),
        }
        write_kit(archive, manifest, files)
    run.progress("make kit", 3, 3)
    return archive


def expected_layers(run: Run) -> tuple[dict[str, str], str]:
    """Return `int8` or `float` for each layer that could be INT8, and what says so.

    That is fusion.json of an engine from the same ONNX file, of this target or of TensorRT-RTX; else
    the Q/DQ nodes of the graph.
    """
    layers = [one for one in read_weighted_layers(run.engine_onnx) if one.op != "ConvTranspose"]
    digest = file_sha256(run.engine_onnx)
    folder = run.workspace.folder
    for made in (folder, folder.with_name("tensorrt-rtx")):
        if made_from(made, "build", "onnx") == digest:
            fusion = read_artifact(made / run.workspace.fusion.name, "build", FusionReport)
            floats = {island.layer for island in fusion.float_islands}
            precisions = {one.name: "float" if one.name in floats else "int8" for one in layers}
            return precisions, f"the engine of {fusion.backend}"
    quantized = {one.name: one.quantized and not one.obstacle for one in layers}
    return {name: "int8" if is_int8 else "float" for name, is_int8 in quantized.items()}, (
        "the Q/DQ nodes of the graph"
    )


def _references(run: Run, card: ModelCard) -> dict[str, tuple[Arrays, References]]:
    """By size (`""` for the usual one): outputs of FP32, and inputs and outputs of the Q/DQ graph.

    They are of a few calibration images, fewer in the smallest and the largest size of what stays open. ONNX
    Runtime's graph optimizations are off: each Q and DQ computes what ONNX says.
    """
    recipe = run.recipe
    folder = recipe.data or calibration_scenes(recipe.model, run.scenes)
    usual = open_samples(
        folder, card.inputs, card.preprocess, run.stored, Draw(NUM_REFERENCES, recipe.seed)
    )
    feeds = {"": next(iter(usual.feeds(NUM_REFERENCES)))}
    for label, samples in run.samples_of_other_sizes(card).items():
        feeds[label] = next(iter(samples.feeds(_OF_OTHER_SIZES)))
    found: dict[str, list[Arrays]] = {label: [] for label in feeds}
    shared = {one.name for one in card.inputs if not one.batched}
    for path in (run.workspace.fp32_onnx, run.engine_onnx):
        axes = sample_axes(read_tensors(path)[1])
        with OnnxRuntimeRunner(path, optimize=False) as runner:
            for label, inputs in feeds.items():
                found[label].append(
                    run_in_batches(runner, inputs, card.batch_size or 1, shared, axes)
                )
    return {
        label: (
            {name: floating[name] for name in card.outputs},
            References(feeds[label], quantized),
        )
        for label, (floating, quantized) in found.items()
    }


def _file_of(label: str) -> str:
    """Of references in the usual size, or `at 320x320`."""
    size = label.removeprefix("at ")
    return f"references_{size}.npz" if size else _REFERENCES


def _describe(
    run: Run,
    card: ModelCard,
    measured: Mapping[str, tuple[Arrays, References]],
    evidence: Evidence,
) -> Manifest:
    recipe = run.recipe
    inputs, outputs = read_tensors(run.engine_onnx)
    layers, source = expected_layers(run)
    tolerances = {
        label: derive_tolerances(
            floating,
            references.outputs,
            card.task,
            card.strides,
            recipe.suppression or DEPLOYMENT,
        )
        for label, (floating, references) in measured.items()
    }
    usual = tolerances.pop("")
    return Manifest(
        name=slug(recipe.model),
        model=recipe.model,
        task=card.task,
        target=run.target.name,
        onnx=run.engine_onnx.name,
        references=_REFERENCES,
        build=_build_options(run, card),
        inputs=inputs,
        outputs=outputs,
        classes=card.classes,
        strides=card.strides,
        preprocess=asdict(card.preprocess),
        layers=layers,
        layers_source=source,
        tolerances=usual,
        run=run_facts(run.final_plan, run.calibration_result, evidence.accuracy, evidence.verdict),
        files={},
        other_sizes=tuple(
            SizedReferences(label, _file_of(label), bounds) for label, bounds in tolerances.items()
        ),
    )


def _build_options(run: Run, card: ModelCard) -> BuildOptions:
    """As for an engine that is built here, but that timings are kept on the device."""
    options, fixed = build_options(run.recipe, run.target, card.inputs), card.batch_size
    batch = options.batch if fixed is None else (fixed, fixed, fixed)
    shapes = open_shapes(card.inputs, fixed, batch)
    return replace(options, batch=batch, shapes=shapes, timing_cache=None)


def _recipe_text(recipe: Recipe) -> str:
    """The recipe as YAML; of files and folders only the names, which alone mean something elsewhere."""
    values = recipe.model_dump(mode="json", exclude_none=True)
    for key in ("weights", "float_model", "data", "evaluation"):
        if key in values:
            values[key] = Path(values[key]).name
    return yaml.safe_dump(values, sort_keys=False)


def _licences(run: Run) -> str:
    recipe = run.recipe
    spec = find_model(recipe.model)
    weights = "They keep the licence of those who published them."
    if recipe.weights is None and spec.weights is not None:
        weights = f"Published under {spec.weights.licence} ({spec.weights.source})."
    elif recipe.weights is None and spec.bundled_weights is not None:
        weights = "They come with reptrt, under the licence of its code."
    return _LICENCES.format(
        onnx=run.engine_onnx.name, model=recipe.model, weights=weights, references=_REFERENCES
    )
