"""Serve a run's model with Triton: its engine on a GPU, or its ONNX file on the CPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from reptrt.engines.inspection.graph_tensors import read_tensors
from reptrt.engines.partial import temporary_folder
from reptrt.engines.target import load_backend
from reptrt.engines.triton import ServedModel, add_version, require_name, require_servable
from reptrt.pipeline.budget import calibrate_and_export
from reptrt.pipeline.deploy.passed import copy_with_evidence, find_evidence, require_passed
from reptrt.pipeline.gate import require_labels
from reptrt.pipeline.model_card import read_card
from reptrt.pipeline.recipe import slug
from reptrt.pipeline.run import Run
from reptrt.pipeline.stages import build


def add_to_repository(
    run: Run,
    repository: Path,
    *,
    name: str | None = None,
    version: int | None = None,
    instances: int = 1,
    keep_config: bool = False,
) -> Path:
    """Calibrate, export and build where that is not done yet; add the result to `repository`.

    Args:
        run: what is served.
        repository: Triton's --model-repository.
        name: of the model there; None for that of MODEL.
        version: its number; None for the next.
        instances: of the model on each GPU, or on the CPU.
        keep_config: leave a config.pbtxt that is there.

    Returns:
        The folder of the version.

    Raises:
        GateError: the gate failed, and the recipe does not force it.
        RepositoryError: Triton cannot load an engine of this target, or see `add_version`.
        MissingComponentError: TensorRT or the target's GPU is not here.
    """
    require_labels(run)
    name = slug(run.recipe.model) if name is None else name
    require_name(name)
    require_servable(run.target)
    load_backend(run.target)  # what is missing is said now, not after calibration
    calibrate_and_export(run)
    build(run)
    verdict = require_passed(run, f"{repository / name}")
    card = read_card(run.workspace.trt_onnx)
    inputs, outputs = read_tensors(run.engine_onnx)
    model = ServedModel(
        name=name,
        file=run.workspace.engine,
        is_engine=run.target.backend == "tensorrt",
        inputs=inputs,
        outputs=outputs,
        max_batch=run.recipe.max_batch,
        instances=instances,
        classes=card.classes,
        labelled_output=card.outputs[0] if card.task == "classification" else None,
        verdict=verdict,
        sizes={one.name: one.sides for one in card.inputs if one.open_sides},
    )
    if model.is_engine:
        return add_version(repository, model, version, keep_config)
    with temporary_folder() as folder:
        copy = Path(folder, model.file.name)
        copy_with_evidence(model.file, copy, find_evidence(run, verdict))
        return add_version(repository, replace(model, file=copy), version, keep_config)
