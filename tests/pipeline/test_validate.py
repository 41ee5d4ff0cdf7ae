"""The evidence, on graphs small enough to know its numbers beforehand."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

from calibrators.base import no_progress
from engines.device import find_gpu
from engines.target import TARGETS
from models.spec import Preprocess
from pipeline.coco import Annotations
from pipeline.datasets import ClassificationSet, DetectionSet, FolderImages
from pipeline.model_card import ModelCard
from pipeline.recipe import Recipe
from pipeline.validate import draw_pictures, engine_can_run, quantized_runner, validate_files
from pipeline.workspace import Workspace, open_workspace

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
    return validate_files(
        workspace, TARGET, card, labelled.images, labelled, batch_size, no_progress
    )


@pytest.mark.parametrize("batch", [None, 2])
def test_accuracy_numerics_layers_and_latency_of_a_classifier(
    workspace: Workspace, tmp_path: Path, batch: int | None
) -> None:
    write_classifier(workspace.fp32_onnx, gain=1.0, batch=str(batch or "N"))
    write_classifier(workspace.trt_onnx, gain=0.5, batch=str(batch or "N"))
    files = colours(tmp_path, (200, 0, 0), (100, 150, 0), (0, 100, 0))  # INT8 misses the second
    found = validate(workspace, files, batch)
    assert found["accuracy"]["fp32"] == 100.0
    assert found["accuracy"]["quantized"] == pytest.approx(66.67)
    assert found["accuracy"]["drop"] == pytest.approx(33.33)
    assert [row["layer"] for row in found["layers"]] == ["fc"]
    signal, noise = 200**2 + 100**2 + 150**2 + 100**2, 75**2 + 50**2
    assert found["layers"][0]["snr_db"] == pytest.approx(10 * np.log10(signal / noise), abs=0.01)
    assert found["numerics"].keys() == {"logits"}
    latency = found["latency_ms"]
    assert latency["fp32"].keys() == latency["quantized"].keys() == {"p50", "p90", "p99"}
    assert latency["backend"].endswith("CPU")
    json.dumps(found, allow_nan=False)


def test_without_labels_only_the_outputs_are_compared(workspace: Workspace, tmp_path: Path) -> None:
    write_classifier(workspace.fp32_onnx, gain=1.0)
    write_classifier(workspace.trt_onnx, gain=1.1)
    images = FolderImages(colours(tmp_path, (0, 90, 0)), PLAIN)
    card = ModelCard("m", "classification", PLAIN, 2, None, ("logits",))
    found = validate_files(workspace, TARGET, card, images, None, None, no_progress)
    assert found["accuracy"] is None
    assert found["numerics"]["logits"]["snr_db"] == pytest.approx(20.0, abs=0.01)


def test_an_engine_runs_nowhere_without_a_gpu(workspace: Workspace) -> None:
    assert not any(engine_can_run(target) for target in TARGETS.values())
    write_classifier(workspace.trt_onnx, gain=1.0)
    with quantized_runner(workspace, TARGET) as runner:
        assert runner.backend.startswith("onnxruntime")


def write_detector(path: Path, score: float) -> None:
    """A box from 4, 4 to 12, 12 of class 0 on every image, whatever it shows."""
    cells = np.zeros((1, 5, 2, 2), dtype=np.float32)
    cells[0, 0, 0, 0] = score
    cells[0, 1:, 0, 0] = (0.0, 0.0, 1.0, 1.0)
    model = onnx.parser.parse_model("""
        <ir_version: 9, opset_import: ["": 19]>
        toy (float[N,3,16,16] images) => (float[N,5,2,2] p3)
        <int64[4] spatial = {0, 1, 2, 3}, float zero = {0}> {
            small = AveragePool <kernel_shape = [8, 8], strides = [8, 8]> (images)
            one = ReduceMean <keepdims = 1> (small, channel)
            nothing = Mul (one, zero)
            p3 = Add (nothing, cells)
        }""")
    model.graph.initializer.append(numpy_helper.from_array(cells, "cells"))
    model.graph.initializer.append(numpy_helper.from_array(np.array([1]), "channel"))
    onnx.save(model, path)


def decode(png: bytes) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def test_pictures_show_the_boxes_of_both_models_side_by_side(
    workspace: Workspace, tmp_path: Path
) -> None:
    write_detector(workspace.fp32_onnx, score=0.9)
    write_detector(workspace.trt_onnx, score=0.1)  # too unsure to be drawn
    files = colours(tmp_path, *[(40, 40, 40)] * 6)
    nothing = Annotations(
        np.zeros((0, 4)), np.zeros(0, dtype=np.int64), np.zeros(0), np.zeros(0, dtype=bool)
    )
    images = DetectionSet(files, (nothing,) * 6, (None,) * 6, ("thing",), LETTERBOX)
    card = ModelCard("m", "detection", LETTERBOX, 1, None, ("p3",), (8,))
    pictures = draw_pictures(workspace, TARGET, card, images, None)
    assert [picture["title"] for picture in pictures] == ["0.png", "1.png", "2.png", "3.png"]
    before, after = decode(pictures[0]["fp32_png"]), decode(pictures[0]["quantized_png"])
    assert abs(after - 40).max() <= 3  # only the image
    assert abs(before - 40).max() > 50
