import io

import numpy as np
import pytest
from PIL import Image

from reptrt.pipeline.report.draw_boxes import DrawnBox, draw_boxes


def drawn(image: np.ndarray, *boxes: DrawnBox) -> np.ndarray:
    picture = Image.open(io.BytesIO(draw_boxes(image, boxes, ["cat"])))
    return np.asarray(picture).astype(int)


def black(height: int, width: int) -> np.ndarray:
    return np.zeros((height, width, 3), np.uint8)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((192, 192), (480, 480)), ((600, 800), (600, 800)), ((1000, 2000), (400, 800)),
     ((10, 1000), (8, 800))],
)  # fmt: skip
def test_pictures_have_a_size_that_can_be_read(
    shape: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert drawn(black(*shape)).shape == (*expected, 3)


def test_a_box_is_drawn_where_it_is() -> None:
    picture = drawn(black(240, 240), DrawnBox((50, 100, 150, 200), 0.9, 0))
    rows, columns = np.nonzero(picture.max(axis=2) > 100)
    assert columns.min() == pytest.approx(100, abs=3)
    assert columns.max() == pytest.approx(300, abs=3)
    assert rows.max() == pytest.approx(400, abs=3)
    assert picture[250:390, 110:290].max() < 40  # inside stays as it was


def test_a_box_that_the_other_model_lacks_has_a_broken_outline_and_says_so() -> None:
    edges = (50.0, 100.0, 450.0, 400.0)
    plain = drawn(black(480, 480), DrawnBox(edges, 0.9, 4))
    unmatched = drawn(black(480, 480), DrawnBox(edges, 0.9, 4, is_unmatched=True))
    white = [
        (picture.min(axis=2) > 180)[150:390, 45:60].any(axis=1) for picture in (plain, unmatched)
    ]
    assert not white[0].any()
    assert 0.3 < white[1].mean() < 0.8
    widths = [
        np.nonzero(picture[85:95].max(axis=(0, 2)) > 100)[0].max() for picture in (plain, unmatched)
    ]
    assert widths[1] > widths[0] + 40


def test_a_class_keeps_its_colour_and_neighbours_differ() -> None:
    colours = [
        tuple(
            drawn(black(480, 480), DrawnBox((50, 100, 450, 400), 0.9, label))[200:300, 52].mean(0)
        )
        for label in range(9)
    ]
    distances = [
        np.abs(np.subtract(a, b)).max() for i, a in enumerate(colours[:8]) for b in colours[:i]
    ]
    assert min(distances) > 25
    assert colours[8] == colours[0]


def test_labels_of_boxes_in_one_place_do_not_cover_each_other() -> None:
    edges = (100.0, 100.0, 300.0, 300.0)
    boxes = [DrawnBox(edges, 0.9 - label / 10, label) for label in (0, 2, 5)]
    picture = drawn(black(480, 480), *boxes)
    colours = [(230, 159, 0), (0, 158, 115), (213, 94, 0)]
    areas = [(np.abs(picture - colour).max(axis=2) < 40).sum() for colour in colours]
    assert min(areas) > 500  # of each label's ground


def test_boxes_that_cannot_be_drawn_are_left_out() -> None:
    odd = [(np.nan, 0, 9, 9), (600, 600, 700, 700), (50, 50, 20, 20), (0, 0, np.inf, 9)]
    boxes = [DrawnBox((a, b, c, d), 0.5, 0) for a, b, c, d in odd]
    assert drawn(black(480, 480), *boxes).max() == 0


def test_a_box_across_the_border_and_an_unnamed_class_are_drawn() -> None:
    assert drawn(black(480, 480), DrawnBox((-50, -50, 900, 30), 0.5, 41)).max() > 0
