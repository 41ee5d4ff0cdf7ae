"""What a network is for, as its outputs tell."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from reptrt.models.load import load_model
from reptrt.models.task import OutputError, count_classes, list_outputs, recognize_task
from tests.onnx_files import from_text

SIZE = (64, 32)


def _maps(channels: int = 7) -> list[torch.Tensor]:
    return [torch.rand(2, channels, 64 // stride, 32 // stride) for stride in (8, 16)]


def test_logits_are_a_classifiers() -> None:
    assert recognize_task([torch.randn(2, 10)], SIZE) == "classification"
    assert recognize_task([torch.randn(2, 10)], SIZE, batch_size=2) == "classification"


def test_rows_of_boxes_of_one_image_are_no_logits() -> None:
    assert recognize_task([torch.randn(100, 6)], SIZE, batch_size=1) == "generic"
    assert recognize_task([torch.randn(2, 1)], SIZE) == "generic"


@pytest.mark.parametrize(
    "name",
    [
        "boxes",
        "pred_bbox",
        "landmarks",
        "faceKeypoints",
        "key_points",
        "embeddings",
        "fc1.Embedding",
    ],
)
def test_names_of_boxes_points_and_embeddings_are_believed(name: str) -> None:
    assert recognize_task([torch.randn(1, 10)], SIZE, names=[name]) == "generic"


@pytest.mark.parametrize("name", ["output", "logits", "boxer", "scores", "510", "combined"])
def test_other_names_say_nothing(name: str) -> None:
    assert recognize_task([torch.randn(1, 10)], SIZE, names=[name]) == "classification"


def test_rows_of_length_1_are_embeddings_but_sure_probabilities_are_not() -> None:
    assert recognize_task([torch.tensor([[0.6, -0.8], [0.0, 1.0]])], SIZE) == "generic"
    assert recognize_task([torch.tensor([[0.6, 0.8]])], SIZE) == "generic"
    assert recognize_task([torch.tensor([[0.0, 1.0]])], SIZE) == "classification"
    assert recognize_task([torch.tensor([[1e-5, 1 - 1e-5]])], SIZE) == "classification"
    assert recognize_task([torch.tensor([[0.6, 0.7]])], SIZE) == "classification"


def test_maps_of_several_strides_with_scores_are_a_detectors() -> None:
    assert recognize_task(_maps(), SIZE) == "detection"
    assert count_classes("detection", [tuple(m.shape) for m in _maps()], SIZE) == 3


@pytest.mark.parametrize(
    "maps",
    [
        _maps()[:1],
        [_maps()[0], _maps(8)[1]],
        _maps(4),
        [-m for m in _maps()],
        [_maps()[0], _maps()[0]],
        [torch.rand(2, 7, 8, 4), torch.rand(2, 7, 3, 2)],
        [torch.rand(2, 7, 8, 2), torch.rand(2, 7, 4, 1)],
        [torch.rand(2, 7), torch.rand(2, 7)],
    ],
    ids=["one", "channels", "no-class", "no-scores", "one-stride", "cut", "stretched", "vectors"],
)
def test_anything_else_is_generic(maps: list[torch.Tensor]) -> None:
    assert recognize_task(maps, SIZE) == "generic"


def test_outputs_are_found_in_sequences_and_dicts_in_order() -> None:
    a, b, c = torch.zeros(1), torch.ones(1), torch.full((1,), 2.0)
    found = list_outputs({"a": a, "more": [b, None, (c,)]})
    assert [float(tensor) for tensor in found] == [0.0, 1.0, 2.0]
    with pytest.raises(OutputError, match="returns no tensor"):
        list_outputs([])
    with pytest.raises(OutputError, match="returns a str"):
        list_outputs([a, "text"])


@pytest.mark.parametrize(
    ("name", "end", "task"),
    [
        ("scores", "scores = Flatten(c)", "classification"),
        ("boxes", "boxes = Flatten(c)", "generic"),
        ("scores", "f = Flatten(c) scores, i = TopK(f, two)", "generic"),
        ("y", "f = Flatten(c) y = LpNormalization<axis = 1>(f)", "generic"),
    ],
)
def test_a_file_of_one_image_says_by_name_and_tail_what_its_rows_are(
    name: str, end: str, task: str, tmp_path: Path
) -> None:
    text = f"""<ir_version: 8, opset_import: ["": 17]> net (float[1,3,8,8] x) => (float {name})
        <float[4,3,8,8] w = {{{", ".join(["0.1"] * 768)}}}, int64[1] two = {{2}}> {{ c = Conv(x, w) {end} }}"""
    assert load_model(str(from_text(text, tmp_path / "m.onnx"))).task == task
