"""A model of the user's own, an ONNX file or a callable, through the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
from PIL import Image
from torch import nn

from reptrt.calibrators.state import read_result
from reptrt.models.load import load_model
from reptrt.models.spec import PreprocessOverrides
from reptrt.pipeline.export.prepare import open_network
from reptrt.pipeline.model_card import read_card
from reptrt.pipeline.recipe import Recipe
from tests.command_line import Outcome, reptrt
from tests.onnx_files import SIDE, Detector, Plain, Segmenter, seeded, write_onnx

NETWORKS = '''
"""A user's own networks."""

from tests.onnx_files import Detector, seeded


def detector():
    return seeded(Detector)
'''


def vit() -> nn.Module:
    return timm.models.VisionTransformer(
        img_size=SIDE, patch_size=8, embed_dim=32, depth=1, num_heads=2, num_classes=5
    )


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three ONNX files, calibration images, and four of them with boxes."""
    folder = tmp_path_factory.mktemp("own")
    for network in (Plain, Detector, Segmenter):
        write_onnx(seeded(network), folder / f"{network.__name__.lower()}.onnx")
    random = np.random.default_rng(0)
    np.save(folder / "data.npy", random.integers(0, 256, (8, SIDE, SIDE, 3), dtype=np.uint8))
    (folder / "coco").mkdir()
    for index in range(4):
        pixels = random.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "coco" / f"{index}.png")
    images = [{"id": i, "file_name": f"{i}.png", "height": 40, "width": 40} for i in range(4)]
    boxes = [
        {
            "id": i + 1,
            "image_id": i,
            "category_id": 1,
            "bbox": [4, 4, 20, 20],
            "area": 400,
            "iscrowd": 0,
        }
        for i in range(4)
    ]
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(("cat", "dog", "cow"))]
    content = {"images": images, "annotations": boxes, "categories": categories}
    (folder / "coco" / "annotations.json").write_text(json.dumps(content))
    return folder


def run(command: str, model: object, project: Path, workspace: Path, *more: object) -> Outcome:
    return reptrt(
        command, model, "--data", project / "data.npy", "--calibrator", "minmax",
        "--target", "tensorrt-rtx", "--quantize", "all", "--workspace", workspace, *more,
    )  # fmt: skip


def report_of(workspace: Path, name: str) -> tuple[dict[str, Any], Path]:
    folder = workspace / name / "minmax-w8a8" / "tensorrt-rtx"
    return json.loads((folder / "report.json").read_text()), folder


def test_an_imported_detector_becomes_an_engine_with_its_accuracy(
    project: Path, tmp_path: Path
) -> None:
    outcome = run(
        "engine", project / "detector.onnx", project, tmp_path, "--eval", project / "coco"
    )
    assert outcome.code == 0, outcome.err
    assert "prepared as for detection, 32x32 pixels, assumed: --layout letterbox" in outcome.err
    report, folder = report_of(tmp_path, "detector")
    assert report["accuracy"]["metric"] == "map_50_95"
    assert {layer["layer"] for layer in report["layers"]} >= {"stem.0", "lateral"}
    assert report["fusion"]["int8_layers"] >= 3
    card = read_card(folder / "model.trt.onnx")
    assert (card.task, card.num_classes, card.strides) == ("detection", 3, (4, 8))
    # boxes and scores of one output are measured apart
    assert (
        tuple(dict.fromkeys(name.partition("[")[0] for name in report["numerics"])) == card.outputs
    )


def test_outputs_of_unknown_meaning_get_numerics_and_the_report_says_so(
    project: Path, tmp_path: Path
) -> None:
    outcome = run("engine", project / "segmenter.onnx", project, tmp_path)
    assert outcome.code == 0, outcome.err
    report, folder = report_of(tmp_path, "segmenter")
    sentence = "the meaning of the outputs is unknown"
    assert report["accuracy"] is None
    assert report["accuracy_note"].startswith(sentence)
    assert all(entry["snr_db"] > 10 for entry in report["numerics"].values())
    assert len(report["numerics"]) == 2
    assert sentence in (folder / "report.html").read_text()
    assert sentence in " ".join(outcome.out.split())


@pytest.mark.parametrize(
    ("flag", "value", "reason"),
    [
        (
            "--eval",
            "coco",
            "the meaning of its outputs is unknown, so it has no accuracy for --eval",
        ),
        ("--max-drop", "1", "unknown, so it has no accuracy for --max-drop"),
        ("--min-agreement", "90", "unknown, so it has no accuracy for --min-agreement"),
    ],
    ids=["eval", "drop", "agreement"],
)
def test_accuracy_of_unknown_outputs_cannot_be_asked_for(
    flag: str, value: str, reason: str, project: Path, tmp_path: Path
) -> None:
    value = str(project / value) if flag == "--eval" else value
    outcome = run("engine", project / "segmenter.onnx", project, tmp_path, flag, value)
    assert outcome.code == 2
    (line,) = outcome.complaints
    assert reason in line


def test_an_imported_transformer_gets_what_timms_gets(project: Path, tmp_path: Path) -> None:
    path = write_onnx(seeded(vit), tmp_path / "vit.onnx", opset=14)  # its LayerNorms in parts
    outcome = reptrt(
        "engine", path, "--data", project / "data.npy", "--target", "tensorrt-rtx",
        "--workspace", tmp_path, "--quantize", "all",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    folder = tmp_path / "vit" / "auto-w8a8" / "tensorrt-rtx"
    report = json.loads((folder / "report.json").read_text())
    assert (report["calibrator"], report["precision"]) == ("repq-vit", "fp16")
    assert read_result(folder / "calibration.safetensors").notes == {
        "Reparameterized LayerNorms": "2",
        "Reparameterized attentions": "0",
    }
    fusion = report["fusion"]
    assert fusion["int8_layers"] == fusion["quantizable_layers"] == 6
    assert fusion["fused_attention"] == fusion["attention_blocks"] == 1


def test_compare_takes_an_onnx_file(project: Path, tmp_path: Path) -> None:
    outcome = run("compare", project / "segmenter.onnx", project, tmp_path, "--calibrators", "mae")
    assert outcome.code == 0, outcome.err
    rows = json.loads((tmp_path / "segmenter" / "compare-w8a8.json").read_text())["rows"]
    assert [(row["calibrator"], row["accuracy"]) for row in rows] == [("mae", None)]


def test_a_callable_may_return_a_detector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_networks.py").write_text(NETWORKS)
    monkeypatch.syspath_prepend(tmp_path)
    size = PreprocessOverrides(image_size=(SIDE, SIDE))
    loaded = load_model("own_networks:detector", overrides=size)
    assert (loaded.task, loaded.num_classes) == ("detection", 3)
    assert (loaded.preprocess.layout, loaded.preprocess.mean) == ("letterbox", (0.0, 0.0, 0.0))
    card = open_network(loaded, Recipe(model="own_networks:detector")).card
    assert (card.outputs, card.strides) == (("p2", "p3"), (4, 8))


@pytest.mark.parametrize(
    ("model", "flags", "expected"),
    [
        ("plain.onnx", ("--task", "detection"), "a detector must return maps"),
        ("detector.onnx", ("--task", "classification"), "a classifier must return logits"),
        ("plain.onnx", ("--image-size", "64"), "its input is 32x32 pixels"),
        ("plain.onnx", ("--weights", __file__), "brings its own weights"),
        ("absent.onnx", (), "no such file"),
    ],
)
def test_what_does_not_fit_the_file_is_said_in_one_line(
    model: str, flags: tuple[str, ...], expected: str, project: Path, tmp_path: Path
) -> None:
    outcome = run("calibrate", project / model, project, tmp_path, *flags)
    assert outcome.code == 2
    (line,) = outcome.complaints
    assert expected in line


def test_task_is_for_models_of_ones_own(project: Path, tmp_path: Path) -> None:
    outcome = run("calibrate", "repvgg_a0", project, tmp_path, "--task", "generic")
    assert outcome.code == 2
    assert "repvgg_a0 is made for classification" in outcome.complaints[0]
