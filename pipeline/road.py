"""The whole road: every stage, in order."""

from __future__ import annotations

import logging

from reptrt.engines.report_schema import Report
from reptrt.engines.target import load_backend
from reptrt.pipeline.budget import calibrate_and_export
from reptrt.pipeline.engine.build import build_options
from reptrt.pipeline.gate import require_labels
from reptrt.pipeline.require import require_boxes
from reptrt.pipeline.run import Run, open_labelled
from reptrt.pipeline.stages import build, report, validate

logger = logging.getLogger(__name__)


def run_pipeline(run: Run) -> Report:
    """Checkpoint in, validated engine and report out."""
    require_labels(run)
    load_backend(run.target)  # what is missing is said now, not after calibration
    build_options(run.recipe, run.target)
    require_boxes(run)
    open_labelled(run, run.loaded)
    logger.info("plan: %s", run.plan.model_dump_json())
    calibrate_and_export(run)
    build(run)
    validate(run)
    return report(run)
