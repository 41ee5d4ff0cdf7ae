"""Gather what the stages left in the workspace into the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from reptrt.calibrators.base import CalibrationResult
from reptrt.engines.artifacts import file_sha256
from reptrt.engines.budget_record import BudgetSearch
from reptrt.engines.cost.records import Comparison
from reptrt.engines.foreign.ranges import Count
from reptrt.engines.histogram_record import LayerHistograms
from reptrt.engines.report_schema import (
    Accuracy,
    BlockLoss,
    FileSizes,
    FusionReport,
    Gate,
    Report,
    RunFacts,
    Validation,
    Verdict,
)
from reptrt.models.spec import Task
from reptrt.pipeline.model_card import read_card
from reptrt.pipeline.plan import Plan
from reptrt.pipeline.report.recommendation import choose_deployment
from reptrt.pipeline.report.summary import comparison_lines
from reptrt.pipeline.workspace.folder import (
    Workspace,
    read_artifact,
    read_optional,
    require,
    stage_records,
)
from reptrt.pipeline.workspace.run_records import StageRecord, installed_versions


def collect_report(
    workspace: Workspace,
    plan: Plan,
    calibration: CalibrationResult | None,
    verdict: Verdict,
    command: str,
) -> Report:
    """What is known about a run when all stages have finished.

    `calibration` is None where a file brings its own scales.
    """
    validation = read_artifact(workspace.validation, "validate", Validation)
    fusion = read_artifact(workspace.fusion, "build", FusionReport)
    card = read_card(require(workspace.trt_onnx, "export"))
    records = stage_records(workspace)
    facts = run_facts(plan, calibration, validation.accuracy, verdict)
    report = Report(
        **vars(facts),
        target=plan.target,
        backend=fusion.backend,
        accuracy_note=_accuracy_note(validation.accuracy, card.task),
        likeness=validation.likeness,
        numerics=validation.numerics,
        engine_numerics=validation.engine_numerics,
        fp16_numerics=validation.fp16_numerics,
        layers=validation.layers,
        reference=validation.reference,
        file_numerics=validation.file_numerics,
        blocks=tuple(BlockLoss(**asdict(block)) for block in calibration.blocks)
        if calibration
        else (),
        calibrators_db=(calibration.compared or None) if calibration else None,
        latency_ms=validation.latency_ms,
        end2end=validation.end2end,
        fusion=fusion.summary,
        cost=predicted_cost(workspace),
        size_bytes=FileSizes(
            fp32_onnx=require(workspace.fp32_onnx, "fp32").stat().st_size,
            trt_onnx=workspace.trt_onnx.stat().st_size,
            engine=require(workspace.engine, "build").stat().st_size,
        ),
        seconds=_seconds(records),
        peak_rss_mb=max((record.peak_rss_mb for record in records.values()), default=None),
        gate=_gate(verdict, plan.max_drop),
        budget=budget_search(workspace, plan),
        notes=tuple(f"{label}: {text}" for label, text in calibration.notes.items())
        if calibration
        else comparison_lines(validation),
        plan=plan.model_dump(mode="json"),
        command=command,
    )
    chosen = choose_deployment(report)
    return replace(
        report,
        verdict=replace(verdict, deploy=chosen.deploy, deploy_reason=chosen.reason),
        deploy=chosen.deploy,
        deploy_reason=chosen.reason,
    )


@dataclass(frozen=True)
class _Point:
    """What of a quantizer in scales.json is shown."""

    num_bits: Count
    read_by: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Scales:
    activations: Mapping[str, _Point]
    weights: Mapping[str, _Point]


def layer_histograms(
    workspace: Workspace, calibration: CalibrationResult | None
) -> dict[str, LayerHistograms]:
    """What the quantizers in front of the layers see, their bits, and the grids with which learning began."""
    found = read_artifact(workspace.histograms, "validate", dict[str, LayerHistograms])
    if calibration is None:
        return found
    scales = read_artifact(workspace.scales, "calibrate", _Scales)
    for name, point in scales.activations.items():
        for layer in point.read_by:
            if layer in found and layer in scales.weights:
                bits = (scales.weights[layer].num_bits, point.num_bits)
                start = calibration.starts.get(name)
                found[layer] = replace(found[layer], start=start, bits=bits)
    return found


def predicted_cost(workspace: Workspace) -> Comparison | None:
    """The predicted comparison with FP16; None where the target has no data sheet."""
    return read_optional(workspace.cost, "cost", Comparison)


def _seconds(records: Mapping[str, StageRecord]) -> dict[str, float]:
    """Of each stage; of a search, those of its earlier rounds, for the last one's are the stages' own."""
    seconds = {name: record.seconds for name, record in records.items()}
    if (search := seconds.pop("budget", None)) is not None:
        last = sum(value for name, value in seconds.items() if value and name != "build")
        if search > last:
            seconds["earlier rounds"] = round(search - last, 2)
    return seconds


def budget_search(workspace: Workspace, plan: Plan) -> BudgetSearch | None:
    """What was tried to stay within the budget; None where there is none, or the files are of another run."""
    found = (
        None if plan.max_drop is None else read_optional(workspace.budget, "budget", BudgetSearch)
    )
    if found is None:
        return None
    is_same = found.made(file_sha256(workspace.trt_onnx))
    return found if is_same and found.max_drop == plan.max_drop else None


def run_facts(
    plan: Plan, calibration: CalibrationResult | None, accuracy: Accuracy | None, verdict: Verdict
) -> RunFacts:
    """What is known when the files are exported, and accuracy and verdict where that was measured."""
    return RunFacts(
        model=plan.model,
        calibrator=calibration.method if calibration else None,
        weight_bits=plan.weight_bits,
        activation_bits=plan.activation_bits,
        precision=plan.precision,
        softmax=plan.softmax,
        num_samples=calibration.num_samples if calibration else 0,
        seed=plan.seed,
        accuracy=accuracy,
        verdict=verdict,
        versions=installed_versions(),
    )


def _accuracy_note(accuracy: Accuracy | None, task: Task) -> str | None:
    """Why there is no accuracy; None where there is one."""
    if accuracy:
        return None
    if task == "generic":
        return (
            "the meaning of the outputs is unknown; SNR and cosine of each compare them with FP32"
        )
    return "no labelled images (`evaluate`)"


def _gate(verdict: Verdict, max_drop: float | None) -> Gate:
    """The verdict in short: None where no gate was asked for."""
    return Gate(
        max_drop, None if verdict.decision == "not judged" else verdict.decision == "passed"
    )
