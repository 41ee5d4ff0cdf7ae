"""Nothing leaves the workspace unless the gate passed, or the user forces it."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, replace
from pathlib import Path

import onnx

from reptrt.engines.artifacts import file_sha256
from reptrt.engines.report_schema import NOT_JUDGED, Report, Verdict
from reptrt.pipeline.gate import is_gated, verdict_of
from reptrt.pipeline.report.collect import predicted_cost, run_facts
from reptrt.pipeline.report.recommendation import choose_deployment
from reptrt.pipeline.run import Run
from reptrt.pipeline.stages import build, price, validate
from reptrt.pipeline.validation.validate import engine_can_run
from reptrt.pipeline.workspace.run_records import made_from

logger = logging.getLogger(__name__)

VERDICT_KEY = "reptrt.verdict"
"""Of an ONNX file's metadata; its value is the verdict as JSON."""


class GateError(ValueError):
    """The verdict forbids to deploy."""

    exit_code = 1


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
    facts = run_facts(run.plan, run.calibration_result, None, verdict)
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


def copy_with_verdict(source: Path, target: Path, verdict: Verdict) -> None:
    """Copy an ONNX file and put `verdict` into the copy's metadata.

    The file in the workspace stays as it is: the engine is built from it, and knows it by its hash.
    """
    model = onnx.load(source)
    kept = [entry for entry in model.metadata_props if entry.key != VERDICT_KEY]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    entry = model.metadata_props.add()
    entry.key, entry.value = VERDICT_KEY, json.dumps(asdict(verdict))
    onnx.save(model, target)
