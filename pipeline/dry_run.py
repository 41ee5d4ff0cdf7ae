"""What a run would do, and for how long, before it does it: `reptrt engine MODEL --dry-run`.

Seconds are those of the last run here where there was one. Else they come from one timed pass of the
float network, times the passes over the images that each stage makes: good for telling a minute from an
hour, no more.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sized
from dataclasses import dataclass

import torch

from reptrt.calibrators.quantized.placement import WEIGHTED
from reptrt.calibrators.registry import list_calibrators
from reptrt.models.graph import example_tensors
from reptrt.pipeline.gate import open_unlabelled, require_labels
from reptrt.pipeline.memory import memory_bound
from reptrt.pipeline.plan import Plan
from reptrt.pipeline.run import Run, open_labelled
from reptrt.pipeline.workspace.run_records import StageRecord, read_records, sha256_or_none

ROAD = ("placement", "channels", "sensitivity", "calibrate", "export", "build", "cost", "validate")
"""Stages that take a while, in their order."""
HIGH_EFFORT = 5
"""Times as long as with effort `auto`; measured on MobileOne-S0."""
SENSITIVITY_PASSES = 3
EVALUATION_PASSES = 4
"""Of the labelled images: the float graph once, the quantized one, which is about three times slower."""
FIXED = {"placement": 20.0, "export": 6.0, "build": 2.0, "cost": 2.0}
"""Seconds of stages that see no images; they grow with the number of layers."""
FIXED_LAYERS = 69
"""Layers of the network whose `FIXED` seconds were measured, the demo."""


@dataclass(frozen=True)
class PlannedStage:
    """One stage of a run that has not begun.

    Attributes:
        name: of `ROAD`.
        state: `done` where its files are here and are skipped unless their inputs change; else `to run`.
        seconds: that it will take, or took.
        source: `last run`, or `estimate`, which is far too long where few layers turn out to pay in INT8: of the demo
            2.6 minutes for 0.6.
    """

    name: str
    state: str
    seconds: float
    source: str


@dataclass(frozen=True)
class DryRun:
    """A run that has not begun.

    Attributes:
        folder: where its files go.
        plan: every choice, as JSON has it.
        calibration_images: that are used.
        labelled_images: that accuracy is measured on; None without any.
        compared_images: without labels, on which a gate compares INT8 with FP32; None where it does not.
        stages: in their order.
        seconds: of the stages that are to run.
        memory_bytes: the most, at the most.
    """

    folder: str
    plan: Mapping[str, object]
    calibration_images: int
    labelled_images: int | None
    compared_images: int | None
    stages: tuple[PlannedStage, ...]
    seconds: float
    memory_bytes: int


def dry_run(run: Run) -> DryRun:
    """Read model and images, and say what `run` would do; no stage runs.

    Raises:
        DataError, LoadError and the like: what the run itself would say of its model and images.
    """
    require_labels(run)
    labelled = open_labelled(run, run.loaded)
    num_labelled = len(labelled) if isinstance(labelled, Sized) else None
    unlabelled = open_unlabelled(run)
    num_compared = None if unlabelled is None else len(unlabelled.samples)
    records = read_records(run.workspace.folder)
    guessed = _guess(run, num_labelled or num_compared or 0)
    stages = tuple(_planned(name, run, records.get(name), guessed[name]) for name in ROAD)
    return DryRun(
        folder=str(run.workspace.folder),
        plan=run.plan.model_dump(mode="json"),
        calibration_images=len(run.samples),
        labelled_images=num_labelled,
        compared_images=num_compared,
        stages=stages,
        seconds=round(sum(one.seconds for one in stages if one.state == "to run"), 1),
        memory_bytes=memory_bound(run.plan),
    )


def _planned(name: str, run: Run, record: StageRecord | None, guess: float) -> PlannedStage:
    if record is None:
        return PlannedStage(name, "to run", round(guess, 1), "estimate")
    folder = run.workspace.folder
    whole = all(sha256_or_none(folder / file) == sha for file, sha in record.artifacts.items())
    return PlannedStage(name, "done" if whole else "to run", record.seconds, "last run")


def _guess(run: Run, num_evaluated: int) -> dict[str, float]:
    """Seconds by stage, from one image through the float network."""
    plan, image = run.plan, _seconds_per_image(run)
    graph = run.recording.float_graph.graph
    layers = sum(node.target in WEIGHTED for node in graph.nodes)
    grown = {name: seconds * max(1.0, layers / FIXED_LAYERS) for name, seconds in FIXED.items()}
    if plan.quantize == "all":
        grown["placement"] = 0.0
    images = len(run.samples)
    return {
        **grown,
        "channels": 0.0 if plan.channel_scaling == "none" else image * images,
        "sensitivity": SENSITIVITY_PASSES * image * images if plan.min_snr else 0.0,
        "calibrate": _passes(plan) * image * images,
        "validate": EVALUATION_PASSES * image * (num_evaluated + 3 * 16),
    }


def _passes(plan: Plan) -> int:
    passes = list_calibrators()[plan.calibrator].passes
    return passes * (HIGH_EFFORT if plan.effort == "high" else 1)


def _seconds_per_image(run: Run) -> float:
    network = run.recording.float_graph
    examples = example_tensors(run.card.inputs, 1, torch.device("cpu"))
    with torch.inference_mode():
        network(*examples)
        started = time.perf_counter()
        network(*examples)
    return time.perf_counter() - started
