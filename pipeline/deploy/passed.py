"""Nothing leaves the workspace unless the gate passed, or the user forces it."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import onnx

from reptrt.engines.artifacts import file_sha256
from reptrt.engines.cost.records import Comparison
from reptrt.engines.report_schema import NOT_JUDGED, Accuracy, Report, Validation, Verdict
from reptrt.pipeline.gate import is_gated, verdict_of
from reptrt.pipeline.report.collect import predicted_cost, run_facts
from reptrt.pipeline.report.recommendation import choose_deployment
from reptrt.pipeline.run import Run
from reptrt.pipeline.stages import build, price, validate
from reptrt.pipeline.validation.validate import engine_can_run
from reptrt.pipeline.workspace.folder import read_artifact
from reptrt.pipeline.workspace.run_records import made_from

logger = logging.getLogger(__name__)

VERDICT_KEY = "reptrt.verdict"
"""Of an ONNX file's metadata; its value is the verdict as JSON."""
ACCURACY_KEY = "reptrt.accuracy"
COST_KEY = "reptrt.cost"
"""Likewise, where they are known; the cost is predicted."""


class GateError(ValueError):
    """The verdict forbids to deploy."""

    exit_code = 1


@dataclass(frozen=True)
class Evidence:
    """What goes with a file that leaves the workspace; None where it is not known."""

    verdict: Verdict
    accuracy: Accuracy | None
    cost: Comparison | None

    @property
    def entries(self) -> dict[str, str]:
        """Key of an ONNX file's metadata -> JSON."""
        known: dict[str, object] = {VERDICT_KEY: asdict(self.verdict)}
        if self.accuracy is not None:
            known[ACCURACY_KEY] = asdict(self.accuracy)
        if (cost := self.cost) is not None:
            known[COST_KEY] = {
                "gpu": cost.gpu,
                "batch": cost.batch,
                "int8_ms": cost.int8.milliseconds,
                "fp16_ms": cost.fp16.milliseconds,
            }
        return {key: json.dumps(value) for key, value in known.items()}


def require_passed(run: Run, artifact: str) -> Verdict:
    """Validate where a gate was asked for and that is not done yet; return the verdict.

    Args:
        run: exported, and built where its engine can run here.
        artifact: that would be written, for the message.

    Raises:
        GateError: the verdict forbids it.
    """
    if is_gated(run.recipe):
        if engine_can_run(run.target):
            build(run)
        validate(run)
    verdict = verdict_of(run) if is_gated(run.recipe) or _is_measured(run) else NOT_JUDGED
    refuse_failed(verdict, artifact)
    return _with_deployment(run, verdict)


def _with_deployment(run: Run, verdict: Verdict) -> Verdict:
    """Add which engine to deploy on the target, by its predicted cost against FP16."""
    price(run)
    facts = run_facts(run.final_plan, run.calibration_result, None, verdict)
    cost = predicted_cost(run.workspace)
    chosen = choose_deployment(Report(**vars(facts), target=run.target.name, backend="", cost=cost))
    return replace(verdict, deploy=chosen.deploy, deploy_reason=chosen.reason)


def refuse_failed(verdict: Verdict, artifact: str) -> None:
    """Refuse to write `artifact` after a gate that failed, unless it is forced.

    Raises:
        GateError: the verdict forbids it.
    """
    if verdict.stops:
        raise GateError(
            f"{artifact}: not written, the gate failed: {verdict.reason}; `force` writes it all the same"
        )
    if verdict.forced:
        logger.warning("%s: the gate failed, written all the same: %s", artifact, verdict.reason)


def _is_measured(run: Run) -> bool:
    """Whether the validation in the workspace is of this very model."""
    workspace = run.workspace
    return made_from(workspace.folder, "validate", "trt_onnx") == file_sha256(workspace.trt_onnx)


def find_evidence(run: Run, verdict: Verdict) -> Evidence:
    """What is known of `run`, whose `verdict` allows it to leave the workspace."""
    accuracy = None
    if _is_measured(run):
        accuracy = read_artifact(run.workspace.validation, "validate", Validation).accuracy
    return Evidence(verdict, accuracy, predicted_cost(run.workspace))


def copy_with_evidence(source: Path, target: Path, evidence: Evidence) -> None:
    """Copy an ONNX file and put `evidence` into the copy's metadata.

    The file in the workspace stays as it is: the engine is built from it, and knows it by its hash.
    """
    model, entries = onnx.load(source), evidence.entries
    kept = [entry for entry in model.metadata_props if entry.key not in entries]
    onnx.helper.set_model_props(model, {**{e.key: e.value for e in kept}, **entries})
    onnx.save(model, target)
