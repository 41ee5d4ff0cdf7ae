"""Validation through an engine, against a TensorRT that runs ONNX files."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reptrt.calibrators.progress import no_progress
from reptrt.engines.report_schema import Percentiles
from reptrt.engines.target import TARGETS
from reptrt.models.card import ModelCard
from reptrt.models.spec import Preprocess
from reptrt.pipeline.data.datasets import ClassificationSet
from reptrt.pipeline.data.feeds import PictureFeeds
from reptrt.pipeline.recipe import Recipe
from reptrt.pipeline.report.recommendation import choose_deployment
from reptrt.pipeline.validation.validate import ValidationSetup, validate_files
from reptrt.pipeline.workspace.folder import Workspace, open_workspace
from tests.fake_tensorrt import GPU, pretend_gpu, write_fake_engine
from tests.pipeline.validation.test_validate import colours, write_classifier
from tests.reports import make_report

PLAIN = Preprocess((16, 16), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
TARGET = replace(TARGETS["tensorrt"], compute_capabilities=(GPU.compute_capability,))


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Gains of the green logit: FP32 1, Q/DQ 1.1, INT8's engine 1.21 and FP16's 1.01."""
    workspace = open_workspace(tmp_path / "build", Recipe(model="m"), TARGET.name)
    write_classifier(workspace.fp32_onnx, gain=1.0)
    write_classifier(workspace.trt_onnx, gain=1.1)
    for engine, gain, milliseconds in (
        (workspace.engine, 1.21, 2.0),
        (workspace.fp16_engine, 1.01, 3.0),
    ):
        write_classifier(tmp_path / "source.onnx", gain)
        write_fake_engine(engine, tmp_path / "source.onnx", milliseconds)
    return workspace


def validate(workspace: Workspace, folder: Path, max_batch: int = 8) -> dict[str, Any]:
    card = ModelCard("m", "classification", PLAIN, 2, None, ("logits",))
    files = colours(folder, (100, 95, 0), (100, 80, 0), (0, 100, 0))  # the engine errs on the first
    labelled = ClassificationSet(files, np.array([0, 0, 1]), PLAIN)
    setup = ValidationSetup(workspace, TARGET, max_batch=max_batch)
    found = validate_files(
        setup, card, PictureFeeds(labelled.images, card.inputs), labelled, no_progress
    )
    json.dumps(asdict(found), allow_nan=False)
    return found


def test_the_engine_the_qdq_model_and_fp32_are_told_apart(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_gpu(monkeypatch)
    found = validate(workspace, tmp_path)
    green, red = 95**2 + 80**2 + 100**2, 2 * 100**2

    def snr(reference: float, test: float) -> float:
        signal = reference**2 * green + red
        return float(10 * np.log10(signal / ((test - reference) ** 2 * green)))

    pairs = {
        "numerics": (1.0, 1.1),
        "engine_numerics": (1.1, 1.21),
        "fp16_numerics": (1.0, 1.01),
    }
    for key, gains in pairs.items():
        assert getattr(found, key)["logits"].snr_db == pytest.approx(snr(*gains), abs=0.05), key


def test_accuracy_is_the_engines_and_both_engines_are_timed_without_copies(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_gpu(monkeypatch)
    found = validate(workspace, tmp_path)
    assert found.accuracy.fp32 == 100.0
    assert found.accuracy.quantized == pytest.approx(66.67)
    latency = found.latency_ms
    assert (latency.backend, latency.device) == ("tensorrt 11.1", GPU.name)
    assert latency.fp32 is None
    # A mark of the pretended stream takes 1 ms, and an upload and a download lie between two each.
    assert latency.device_only.quantized == Percentiles(3.0, 3.0, 3.0)
    assert latency.device_only.fp16 == Percentiles(4.0, 4.0, 4.0)
    assert (latency.quantized.p50, latency.fp16.p50) == (5.0, 6.0)
    chosen = choose_deployment(make_report(accuracy=found.accuracy, latency_ms=latency))
    assert chosen.deploy == "int8"
    assert chosen.reason.startswith("INT8 is 1.33× faster than FP16 (3.00")


def test_no_batch_is_larger_than_the_engine_takes(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_gpu(monkeypatch, max_batch=2)
    assert validate(workspace, tmp_path, max_batch=2).accuracy.num_images == 3
