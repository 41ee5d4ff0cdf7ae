"""An evaluation in parts gives the numbers of one process, to the last digit."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from reptrt.calibrators.progress import no_progress
from reptrt.engines.runtime.runners import OnnxRuntimeRunner
from reptrt.pipeline.data.datasets import ClassificationSet
from reptrt.pipeline.validation import shards
from reptrt.pipeline.validation.evaluate import evaluate
from reptrt.pipeline.validation.shards import Spread, evaluate_in_parts
from tests.pipeline.validation.test_evaluate import (
    PLAIN,
    Reciter,
    card,
    detection_set,
    grey_images,
    objects,
    one_box,
)

COUNT = 45  # six batches, the last one of five images

CLASSIFIER = """<ir_version: 8, opset_import: ["": 17]>
net (float[N, 3, 32, 32] images) => (float[N, 7] logits)
<int64[2] axes = {2, 3}, float s = {STEP}> {
    pooled = ReduceMean<axes = [2, 3], keepdims = 0>(images)
    rounded = Div(pooled, s) level = Floor(rounded)
    phase = Sin(level)
    one = ReduceMean<axes = [1], keepdims = 1>(phase)
    w = Constant<value = float[1, 7] {1.0, -2.0, 3.0, -1.5, 0.5, 2.5, -3.0}>()
    logits = MatMul(one, w)
}"""


def classifier(path: Path, step: float) -> OnnxRuntimeRunner:
    onnx.save(onnx.parser.parse_model(CLASSIFIER.replace("STEP", str(step))), path)
    return OnnxRuntimeRunner(path, optimize=False)


def test_two_processes_count_as_one_does(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 7, COUNT)
    images = ClassificationSet(grey_images(tmp_path, COUNT), labels, PLAIN)
    fp32, int8 = classifier(tmp_path / "a.onnx", 0.004), classifier(tmp_path / "b.onnx", 0.007)
    contract = card("classification", ("logits",))
    with fp32, int8:
        alone = evaluate(fp32, int8, contract, images, None, no_progress)
    seen: list[tuple[str, int, int]] = []
    together = evaluate_in_parts(
        fp32, int8, contract, images, None, lambda *step: seen.append(step), Spread(2)
    )
    assert together == alone
    assert 0 < alone.accuracy.agreement < 100
    assert seen == [("evaluate FP32 and INT8", done, 6) for done in range(1, 7)]


def test_a_worker_starts_without_pytorch(tmp_path: Path) -> None:
    images = ClassificationSet(grey_images(tmp_path, 3), np.array([0, 1, 2]), PLAIN)
    runner = classifier(tmp_path / "a.onnx", 0.004)
    job = shards._Job(
        {"fp32": runner, "quantized": runner.copy(1)}, card("classification", ("logits",)), None
    )
    with ProcessPoolExecutor(1, get_context("spawn")) as worker:
        votes = worker.submit(shards._run_part, job, images).result()
        loaded = worker.submit(eval, "sorted(__import__('sys').modules)").result()
    assert len(votes.labels) == 3
    assert "onnxruntime" in loaded
    assert "torch" not in loaded  # which takes as long to import as a thousand images take


@dataclass
class Copied(Reciter):
    def copy(self, num_threads: int) -> Copied:
        return self


def test_boxes_of_all_parts_are_matched_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def in_turn(work: Any, parts: Any, spread: Spread) -> Any:
        assert [len(part) for part in parts] == [4, 1]
        return map(work, parts)

    monkeypatch.setattr(shards, "_in_processes", in_turn)
    monkeypatch.setattr(shards, "_PARTS", 1)
    images = detection_set(tmp_path, *(objects((4, 4, 20, 20)) for _ in range(5)))
    fp32 = Copied("FP32", np.stack([one_box(0.9 - 0.1 * i) for i in range(5)]), output="p3")
    int8 = Copied("INT8", np.stack([one_box(0.9, left=0.2 * i) for i in range(5)]), output="p3")
    contract = card("detection", ("p3",), (8,))
    alone = evaluate(fp32, int8, contract, images, 2, no_progress)
    together = evaluate_in_parts(fp32, int8, contract, images, 2, no_progress, Spread(2))
    assert together == alone
    assert alone.accuracy.quantized < alone.accuracy.fp32


def test_an_address_where_no_cluster_answers_is_refused(tmp_path: Path) -> None:
    images = ClassificationSet(grey_images(tmp_path, 2), np.zeros(2, dtype=np.int64), PLAIN)
    runner = classifier(tmp_path / "a.onnx", 0.004)
    with pytest.raises(RuntimeError, match=r"no Ray cluster answers at 127\.0\.0\.1:1"):
        evaluate_in_parts(
            runner, runner, card("classification", ("logits",)), images, None, no_progress,
            Spread(2, "127.0.0.1:1"),
        )  # fmt: skip
