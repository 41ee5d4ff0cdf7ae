"""Gather what the stages left in the workspace into the content of report.json."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, cast

from reptrt.calibrators.state import read_result
from reptrt.engines.report_schema import Report
from reptrt.models.spec import Task
from reptrt.pipeline.model_card import read_card
from reptrt.pipeline.recipe import Recipe
from reptrt.pipeline.report.recommendation import choose_deployment
from reptrt.pipeline.workspace import (
    Workspace,
    installed_versions,
    read_artifact,
    require,
    stage_records,
)

FUSION_KEYS = (
    *("int8_layers", "quantizable_layers", "int8_coverage", "kernels", "float_islands"),
    *("attention_blocks", "fused_attention"),
)


def collect_report(
    workspace: Workspace, recipe: Recipe, precision: str, target: str, command: str
) -> dict[str, Any]:
    """Content of report.json; `reptrt.engines.report_schema.Report` documents keys and units."""
    validation = read_artifact(workspace.validation, "validate")
    fusion = read_artifact(workspace.fusion, "build")
    calibration = read_result(require(workspace.calibration, "calibrate"))
    card = read_card(require(workspace.trt_onnx, "export"))
    records = stage_records(workspace)
    content = {
        "model": recipe.model,
        "calibrator": calibration.method,
        "weight_bits": recipe.weight_bits,
        "activation_bits": recipe.activation_bits,
        "precision": precision,
        "softmax": recipe.softmax,
        "target": target,
        "backend": fusion["backend"],
        "num_samples": calibration.num_samples,
        "seed": recipe.seed,
        "accuracy": validation["accuracy"],
        "accuracy_note": _accuracy_note(validation["accuracy"], card.task),
        "numerics": validation["numerics"],
        "engine_numerics": validation["engine_numerics"],
        "fp16_numerics": validation["fp16_numerics"],
        "layers": validation["layers"],
        "blocks": [asdict(block) for block in calibration.blocks],
        "latency_ms": validation["latency_ms"],
        "end2end": validation["end2end"],
        "fusion": {key: fusion[key] for key in FUSION_KEYS},
        "size_bytes": {
            "fp32_onnx": require(workspace.fp32_onnx, "export").stat().st_size,
            "trt_onnx": workspace.trt_onnx.stat().st_size,
            "engine": require(workspace.engine, "build").stat().st_size,
        },
        "seconds": {name: record["seconds"] for name, record in records.items()},
        "peak_rss_mb": max((record["peak_rss_mb"] for record in records.values()), default=None),
        "versions": installed_versions(),
        "gate": _gate(validation["accuracy"], recipe.max_drop),
        "notes": [f"{label}: {text}" for label, text in calibration.notes.items()],
        "command": command,
    }
    deploy, reason = choose_deployment(cast(Report, content))
    return {**content, "deploy": deploy, "deploy_reason": reason}


def _accuracy_note(accuracy: dict[str, Any] | None, task: Task) -> str | None:
    """Why there is no accuracy; None where there is one."""
    if accuracy:
        return None
    if task == "generic":
        return (
            "the meaning of the outputs is unknown; SNR and cosine of each compare them with FP32"
        )
    return "no labelled images (`evaluate`)"


def _gate(accuracy: dict[str, Any] | None, max_drop: float | None) -> dict[str, Any]:
    """Whether INT8 loses at most `max_drop` points; None where that was not asked."""
    if max_drop is None:
        return {"max_drop": None, "passed": None}
    return {"max_drop": max_drop, "passed": accuracy is not None and accuracy["drop"] <= max_drop}
