"""Which images are shown, and what is on them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reptrt.engines.device import find_gpu
from reptrt.engines.target import TARGETS
from reptrt.models.card import ModelCard
from reptrt.models.spec import Preprocess
from reptrt.pipeline.data.coco import Annotations
from reptrt.pipeline.data.datasets import DetectionSet
from reptrt.pipeline.recipe import Recipe
from reptrt.pipeline.report.example_images import choose_images, draw_pictures
from reptrt.pipeline.validation.validate import ValidationSetup
from reptrt.pipeline.workspace.folder import open_workspace
from tests.one_box_detector import write_detector

LETTERBOX = Preprocess((16, 16), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), layout="letterbox")
TARGET = TARGETS["tensorrt-rtx"]


def test_images_with_most_differences_come_first_and_no_others() -> None:
    tallies = [(4, 0)] * 20
    tallies[3], tallies[7], tallies[8], tallies[12] = (4, 1), (9, 5), (6, 2), (5, 1)
    tallies[0], tallies[1] = (0, 0), (30, 0)
    assert choose_images(tallies) == [7, 8, 3, 12]


def test_without_a_difference_two_usual_images_are_shown() -> None:
    assert choose_images([(30, 0), (4, 0), (5, 0), *[(4, 0)] * 9]) == [1, 3]


def test_images_without_boxes_are_never_shown() -> None:
    assert choose_images([(0, 0)] * 9) == []
    assert choose_images([(0, 0), (3, 0), (0, 0)]) == [1]


def decode(jpeg: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB")).astype(int)


@pytest.mark.skipif(find_gpu() is not None, reason="these graphs have no engine")
def test_pictures_show_the_boxes_of_both_models_side_by_side(tmp_path: Path) -> None:
    workspace = open_workspace(tmp_path / "build", Recipe(model="m"), TARGET.name)
    write_detector(workspace.fp32_onnx, score=0.9)
    write_detector(workspace.trt_onnx, score=0.3)  # too unsure to be shown, but a partner
    files = tuple(tmp_path / f"{index}.png" for index in range(3))
    for file in files:
        Image.new("RGB", (16, 16), (40, 40, 40)).save(file)
    nothing = Annotations(
        np.zeros((0, 4)), np.zeros(0, dtype=np.int64), np.zeros(0), np.zeros(0, dtype=bool)
    )
    images = DetectionSet(files, (nothing,) * 3, (None,) * 3, ("thing",), LETTERBOX)
    card = ModelCard("m", "detection", LETTERBOX, 1, None, ("p3",), (8,))
    (picture,) = draw_pictures(
        ValidationSetup(workspace, TARGET), card, images, [(0, 0), (2, 0), (0, 0)]
    )
    assert (picture.title, picture.note) == ("1.png", "the same boxes")
    for png in (picture.fp32_png, picture.quantized_png):
        assert abs(decode(png) - 40).max() > 50
    write_detector(workspace.trt_onnx, score=0.2)
    (picture,) = draw_pictures(
        ValidationSetup(workspace, TARGET), card, images, [(0, 0), (1, 1), (0, 0)]
    )
    assert picture.note == "1 box in one of the two only"
    assert abs(decode(picture.quantized_png) - 40).max() <= 3  # only the image
