"""The evidence, on graphs small enough to know its numbers beforehand."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

from reptrt.calibrators.progress import no_progress
from reptrt.engines.device import find_gpu
from reptrt.engines.outputs.suppression import Suppression
from reptrt.engines.report_schema import End2End
from reptrt.engines.target import TARGETS, Backend
from reptrt.models.card import ModelCard
from reptrt.models.spec import Preprocess
from reptrt.pipeline.data.coco import Annotations
from reptrt.pipeline.data.datasets import ClassificationSet, DetectionSet, FolderImages
from reptrt.pipeline.data.feeds import PictureFeeds
from reptrt.pipeline.export.append_nms import write_with_nms
from reptrt.pipeline.recipe import Recipe
from reptrt.pipeline.validation.validate import (
    ValidationSetup,
    engine_can_run,
    quantized_runner,
    validate_files,
)
from reptrt.pipeline.workspace.folder import Workspace, open_workspace
from tests.one_box_detector import write_detector

TARGET = TARGETS["tensorrt-rtx"]
PLAIN = Preprocess((16, 16), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
LETTERBOX = Preprocess((16, 16), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), layout="letterbox")

pytestmark = pytest.mark.skipif(
    find_gpu() is not None, reason="with a GPU the engine is validated, and these graphs have none"
)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return open_workspace(tmp_path / "build", Recipe(model="m"), TARGET.name)


def write_classifier(path: Path, gain: float, batch: str = "N") -> None:
    """Logits: the mean of red, and `gain` times the mean of green."""
    model = onnx.parser.parse_model(f"""
        <ir_version: 9, opset_import: ["": 19]>
        toy (float[{batch},3,16,16] images) => (float[{batch},2] logits)
        <int64[2] hw = {{2, 3}}> {{
            mean = ReduceMean <keepdims = 0> (images, hw)
            logits = Gemm (mean, w)
        }}""")
    weight = np.array([[1, 0], [0, gain], [0, 0]], dtype=np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    model.graph.node[1].name = "fc"
    onnx.save(model, path)


def colours(folder: Path, *pixels: tuple[int, int, int]) -> tuple[Path, ...]:
    files = tuple(folder / f"{index}.png" for index in range(len(pixels)))
    for file, colour in zip(files, pixels, strict=True):
        Image.new("RGB", (16, 16), colour).save(file)
    return files


def validate(
    workspace: Workspace, files: tuple[Path, ...], batch_size: int | None = None
) -> dict[str, Any]:
    card = ModelCard("m", "classification", PLAIN, 2, None, ("logits",))
    labelled = ClassificationSet(files, np.array([0, 1, 1]), PLAIN)
    setup = ValidationSetup(workspace, TARGET, batch_size)
    return validate_files(
        setup, card, PictureFeeds(labelled.images, card.inputs), labelled, no_progress
    )


@pytest.mark.parametrize("batch", [None, 2])
def test_accuracy_numerics_layers_and_latency_of_a_classifier(
    workspace: Workspace, tmp_path: Path, batch: int | None
) -> None:
    write_classifier(workspace.fp32_onnx, gain=1.0, batch=str(batch or "N"))
    write_classifier(workspace.trt_onnx, gain=0.5, batch=str(batch or "N"))
    files = colours(tmp_path, (200, 0, 0), (100, 150, 0), (0, 100, 0))  # INT8 misses the second
    found = validate(workspace, files, batch)
    assert found.accuracy.fp32 == 100.0
    assert found.accuracy.quantized == pytest.approx(66.67)
    assert found.accuracy.drop == pytest.approx(33.33)
    assert [row.layer for row in found.layers] == ["fc"]
    signal, noise = 200**2 + 100**2 + 150**2 + 100**2, 75**2 + 50**2
    assert found.layers[0].snr_db == pytest.approx(10 * np.log10(signal / noise), abs=0.01)
    assert found.numerics.keys() == {"logits"}
    assert found.latency_ms is None  # no GPU here runs the engine
    json.dumps(asdict(found), allow_nan=False)


def test_without_labels_only_the_outputs_are_compared(workspace: Workspace, tmp_path: Path) -> None:
    write_classifier(workspace.fp32_onnx, gain=1.0)
    write_classifier(workspace.trt_onnx, gain=1.1)
    images = FolderImages(colours(tmp_path, (0, 90, 0)), PLAIN)
    card = ModelCard("m", "classification", PLAIN, 2, None, ("logits",))
    found = validate_files(
        ValidationSetup(workspace, TARGET),
        card,
        PictureFeeds(images, card.inputs),
        None,
        no_progress,
    )
    assert found.accuracy is None
    assert found.numerics["logits"].snr_db == pytest.approx(20.0, abs=0.01)


def test_an_engine_runs_nowhere_without_a_gpu(workspace: Workspace) -> None:
    assert [name for name, target in TARGETS.items() if engine_can_run(target)] == ["cpu"]
    write_classifier(workspace.trt_onnx, gain=1.0)
    with quantized_runner(ValidationSetup(workspace, TARGET)) as runner:
        assert runner.backend.startswith("onnxruntime")


EMPTY = Annotations(
    np.zeros((0, 4)), np.zeros(0, dtype=np.int64), np.zeros(0), np.zeros(0, dtype=bool)
)
THING = Annotations(
    np.array([[4.0, 4, 12, 12]]), np.zeros(1, dtype=np.int64), np.array([64.0]), np.zeros(1, bool)
)


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt_rtx"])
def test_an_end_to_end_detector_is_measured_through_its_own_boxes(
    workspace: Workspace, tmp_path: Path, backend: Backend
) -> None:
    card = ModelCard("m", "detection", LETTERBOX, 1, None, ("p3",), (8,))
    write_detector(workspace.fp32_onnx, score=0.9)
    write_detector(workspace.trt_onnx, score=0.2, card=card)  # dropped by the engine's threshold
    suppression = Suppression(0.25, 0.65, 10)
    write_with_nms(workspace.trt_onnx, workspace.end2end_onnx, suppression, backend)
    files = colours(tmp_path, (10, 10, 10), (40, 40, 40))
    images = DetectionSet(files, (THING,) * 2, (None,) * 2, ("thing",), LETTERBOX)
    setup = ValidationSetup(workspace, replace(TARGET, backend=backend), None, suppression)
    found = validate_files(
        setup, card, PictureFeeds(images.images, card.inputs), images, no_progress
    )
    assert found.end2end == End2End(
        0.25, 0.65, max_detections=10, identical=100.0, agreement=100.0, num_images=2,
        backend=found.end2end.backend,
    )  # fmt: skip
    assert found.numerics.keys() == {"p3"}
    assert (found.accuracy.fp32, found.accuracy.quantized) == (100.0, 100.0)
    assert found.accuracy.agreement == 0.0  # only boxes of 0.25 and more count there
    assert found.shown == ((1, 1), (1, 1))
    json.dumps(asdict(found), allow_nan=False)


def test_boxes_that_the_graph_loses_are_noticed(workspace: Workspace, tmp_path: Path) -> None:
    card = ModelCard("m", "detection", LETTERBOX, 1, None, ("p3",), (8,))
    write_detector(workspace.fp32_onnx, score=0.9)
    write_detector(workspace.trt_onnx, score=0.9, card=card)
    wrong = Suppression(0.95, 0.65, 10)
    write_with_nms(workspace.trt_onnx, workspace.end2end_onnx, wrong, TARGET.backend)
    images = FolderImages(colours(tmp_path, (10, 10, 10)), LETTERBOX)
    setup = ValidationSetup(workspace, TARGET, None, Suppression(0.25, 0.65, 10))
    found = validate_files(setup, card, PictureFeeds(images, card.inputs), None, no_progress)
    assert (found.end2end.identical, found.end2end.agreement) == (0.0, 0.0)


def test_without_end_to_end_there_is_nothing_to_say_about_it(
    workspace: Workspace, tmp_path: Path
) -> None:
    card = ModelCard("m", "detection", LETTERBOX, 1, None, ("p3",), (8,))
    for path in (workspace.fp32_onnx, workspace.trt_onnx):
        write_detector(path, score=0.9)
    files = colours(tmp_path, (10, 10, 10))
    images = DetectionSet(files, (EMPTY,), (None,), ("thing",), LETTERBOX)
    found = validate_files(
        ValidationSetup(workspace, TARGET),
        card,
        PictureFeeds(images.images, card.inputs),
        images,
        no_progress,
    )
    assert found.end2end is None
    assert found.shown == ((2, 0),)
