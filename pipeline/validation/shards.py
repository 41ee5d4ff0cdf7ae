"""An evaluation in parts, by several processes or nodes: the same numbers to the last digit.

A part is a run of whole batches, so every batch is the one that a single process would make; what comes back are
votes or boxes of each image, joined in the order of the images before anything is computed from them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from typing import Any, TypeVar

import numpy as np

from reptrt.calibrators.progress import Progress, no_progress
from reptrt.engines.processors import available_processors
from reptrt.engines.runtime.runners import OnnxRuntimeRunner
from reptrt.models.card import ModelCard
from reptrt.pipeline.cluster import connect
from reptrt.pipeline.data.datasets import ClassificationSet, DetectionSet
from reptrt.pipeline.validation.classification_metrics import TopAccuracy
from reptrt.pipeline.validation.evaluate import (
    Boxes,
    ClassVotes,
    Evaluation,
    accuracy_of_boxes,
    accuracy_of_votes,
    count_votes,
    find_boxes,
)
from reptrt.pipeline.validation.evaluate_batches import BATCH

Part = TypeVar("Part")

_PARTS = 8
"""For each worker: enough for progress, and for workers of unequal speed."""


@dataclass(frozen=True)
class Spread:
    """Over what an evaluation is spread.

    Attributes:
        workers: processes on this machine, or tasks at once on the cluster.
        ray: address of a cluster; None uses processes.
    """

    workers: int = 1
    ray: str | None = None

    @property
    def is_one(self) -> bool:
        """Whether there is nothing to spread over."""
        return self.workers == 1 and self.ray is None


ONE_PROCESS = Spread()


@dataclass(frozen=True)
class _Job:
    """What every part needs: unopened runners, and how they are fed."""

    runners: dict[str, OnnxRuntimeRunner]
    card: ModelCard
    batch_size: int | None


def evaluate_in_parts(
    fp32: OnnxRuntimeRunner,
    quantized: OnnxRuntimeRunner,
    card: ModelCard,
    evaluation: ClassificationSet | DetectionSet,
    batch_size: int | None,
    progress: Progress,
    spread: Spread,
) -> Evaluation:
    """`reptrt.pipeline.validation.evaluate.evaluate`, spread over workers.

    Every worker opens both files under their own paths, and reads its images itself.

    Raises:
        MissingComponentError: no cluster answers.
        DataError: an image cannot be read.
    """
    threads = 1 if spread.ray else max(1, available_processors() // spread.workers)
    runners = {"fp32": fp32.copy(threads), "quantized": quantized.copy(threads)}
    job = _Job(runners, card, batch_size)
    parts = _cut(evaluation, batch_size or BATCH, _PARTS * spread.workers)
    work = partial(_run_part, job)
    run = _on_cluster if spread.ray else _in_processes
    found = []
    for done, part in enumerate(run(work, parts, spread), start=1):
        found.append(part)
        progress("evaluate FP32 and INT8", done, len(parts))
    if isinstance(evaluation, DetectionSet):
        return accuracy_of_boxes(_join_boxes(found), card, evaluation)
    return accuracy_of_votes(_join_votes(found))


def _cut(evaluation: Any, batch: int, count: int) -> list[Any]:
    """Parts of whole batches, in order; at most `count`."""
    batches = -(-len(evaluation) // batch)
    step = batch * -(-batches // count)
    return [evaluation.part(start, start + step) for start in range(0, len(evaluation), step)]


def _run_part(job: _Job, part: ClassificationSet | DetectionSet) -> ClassVotes | Boxes:
    with ExitStack() as stack:
        runners = {key: stack.enter_context(one) for key, one in job.runners.items()}
        if isinstance(part, DetectionSet):
            return find_boxes(runners, job.card, part, job.batch_size, no_progress)
        return count_votes(runners, job.card, part, job.batch_size, no_progress)


def _in_processes(
    work: Callable[[Any], Part], parts: Sequence[Any], spread: Spread
) -> Iterator[Part]:
    with ProcessPoolExecutor(spread.workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(work, parts)


def _on_cluster(
    work: Callable[[Any], Part], parts: Sequence[Any], spread: Spread
) -> Iterator[Part]:
    ray = connect(spread.ray)
    task = ray.remote(num_cpus=1, max_retries=3)(_call)
    shared = ray.put(work)
    waiting = list(reversed(parts))
    running: list[Any] = []
    while waiting or running:
        while waiting and len(running) < 2 * spread.workers:
            running.append(task.remote(shared, waiting.pop()))
        yield ray.get(running.pop(0))


def _call(work: Callable[[Any], Part], part: Any) -> Part:
    return work(part)


def _join_votes(parts: Sequence[Any]) -> ClassVotes:
    accuracy = {key: TopAccuracy() for key in parts[0].accuracy}
    for part in parts:
        for key, counts in part.accuracy.items():
            accuracy[key].merge(counts)
    chosen = {key: np.concatenate([part.chosen[key] for part in parts]) for key in accuracy}
    labels = np.concatenate([part.labels for part in parts])
    divergence = np.concatenate([part.divergence for part in parts])
    return ClassVotes(accuracy, chosen, labels, divergence)


def _join_boxes(parts: Sequence[Any]) -> Boxes:
    return {key: [boxes for part in parts for boxes in part[key]] for key in parts[0]}
