import io

import numpy as np
import pytest
from PIL import Image

from pipeline.pictures import draw_boxes


def drawn(image: np.ndarray, detections: list[list[float]]) -> np.ndarray:
    boxes = np.array(detections, dtype=np.float32).reshape(-1, 6)
    return np.asarray(Image.open(io.BytesIO(draw_boxes(image, boxes, ["cat"]))))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((192, 192), (480, 480)), ((600, 800), (600, 800)), ((1000, 2000), (480, 960)),
     ((10, 1000), (10, 960))],
)  # fmt: skip
def test_pictures_have_a_size_that_can_be_read(
    shape: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert drawn(np.zeros((*shape, 3), np.uint8), []).shape == (*expected, 3)


def test_a_box_is_drawn_where_it_is() -> None:
    picture = drawn(np.zeros((240, 240, 3), np.uint8), [[50, 100, 150, 200, 0.9, 0]])
    rows, columns = np.nonzero(picture.max(axis=2) > 100)
    assert columns.min() == pytest.approx(100, abs=2)
    assert columns.max() == pytest.approx(300, abs=2)
    assert rows.max() == pytest.approx(400, abs=2)
    assert picture[250:390, 110:290].max() < 40  # inside stays as it was


def test_boxes_that_cannot_be_drawn_are_left_out() -> None:
    black = np.zeros((480, 480, 3), np.uint8)
    odd = [[np.nan, 0, 9, 9, 0.5, 0], [600, 600, 700, 700, 0.5, 0], [50, 50, 20, 20, 0.5, 0]]
    assert drawn(black, odd).max() == 0


def test_a_box_across_the_border_and_an_unnamed_class_are_drawn() -> None:
    assert drawn(np.zeros((480, 480, 3), np.uint8), [[-50, -50, 900, 30, 0.5, 41]]).max() > 0
