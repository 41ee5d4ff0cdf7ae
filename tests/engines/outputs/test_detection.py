"""Letterbox, decoding and NMS against hand-computed values and a plain-loop reference."""

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reptrt.engines.outputs.detection import (
    Detections,
    boxes_to_image,
    decode,
    detect,
    iou,
    letterbox,
    nms,
    read_nms_outputs,
)
from reptrt.engines.outputs.suppression import EVALUATION, MAX_CANDIDATES, Suppression
from tests.plain_detection import plain_detect, plain_nms


def detections(boxes, scores, labels) -> Detections:
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(scores, np.float32),
        np.array(labels, np.int64),
    )


def random_detections(seed: int, count: int, num_classes: int = 3, levels: int = 0) -> Detections:
    """Boxes that overlap; with `levels`, only so many different scores, so that there are ties."""
    rng = np.random.default_rng(seed)
    corner, sides = rng.uniform(0, 60, (count, 2)), rng.uniform(5, 40, (count, 2))
    scores = rng.integers(1, levels + 1, count) / levels if levels else rng.random(count)
    boxes = np.concatenate((corner, corner + sides), axis=1)
    return detections(boxes, scores, rng.integers(0, num_classes, count))


def random_maps(seed: int, batch: int, num_classes: int, *, wild: bool = False) -> list[np.ndarray]:
    """Maps of strides 8 and 16; `wild` ones hold numbers that no network should make."""
    rng = np.random.default_rng(seed)
    maps = []
    for side in (4, 2):
        scores = rng.integers(0, 8, (batch, num_classes, side, side)) / 8
        distances = rng.uniform(-0.3 if wild else 0.2, 3, (batch, 4, side, side))
        level = np.concatenate((scores, distances), axis=1).astype(np.float32)
        if wild:
            odd = rng.choice([np.nan, np.inf, -np.inf, 3e38, -3e38, 3e37, 0.0], level.shape)
            level = np.where(rng.random(level.shape) < 0.1, odd, level).astype(np.float32)
        maps.append(level)
    return maps


def assert_same(found: Detections, expected: list[tuple[list[float], float, int]]) -> None:
    assert found.labels.tolist() == [label for _, _, label in expected]
    assert found.scores.tolist() == [score for _, score, _ in expected]
    boxes = np.array([box for box, _, _ in expected]).reshape(-1, 4)
    np.testing.assert_allclose(found.boxes, boxes, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("levels", [0, 4], ids=["distinct", "ties"])
@pytest.mark.parametrize("num_classes", [1, 3, 80])
@pytest.mark.parametrize("limit", [300, 7])
def test_nms_keeps_what_a_plain_loop_keeps(levels, num_classes, limit):
    found = random_detections(num_classes, 200, num_classes, levels)
    kept = plain_nms(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), 0.3, limit)
    result = nms(found, 0.3, limit)
    assert 0 < len(kept) < 200
    np.testing.assert_array_equal(result.boxes, found.boxes[kept])
    np.testing.assert_array_equal(result.scores, found.scores[kept])
    np.testing.assert_array_equal(result.labels, found.labels[kept])


GRID = st.integers(0, 6).map(float)  # whole numbers: IoU is exact, and thresholds are met exactly
BOX = st.tuples(GRID, GRID, GRID, GRID)


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(st.tuples(BOX, st.integers(1, 4), st.integers(0, 1)), max_size=12),
    threshold=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    limit=st.integers(1, 12),
)
def test_nms_keeps_what_a_plain_loop_keeps_of_any_boxes(rows, threshold, limit):
    boxes, scores, labels = [list(column) for column in zip(*rows, strict=True)] or ([], [], [])
    found = detections(boxes, [score / 4 for score in scores], labels)
    kept = plain_nms(boxes, scores, labels, threshold, limit)
    result = nms(found, threshold, limit)
    np.testing.assert_array_equal(result.boxes, found.boxes[kept])
    np.testing.assert_array_equal(result.labels, found.labels[kept])


@pytest.mark.parametrize("wild", [False, True], ids=["usual", "wild"])
@pytest.mark.parametrize("num_classes", [1, 5])
@pytest.mark.parametrize("seed", range(4))
def test_detect_finds_what_plain_loops_find(seed, num_classes, wild):
    maps = random_maps(seed, 3, num_classes, wild=wild)
    suppression = Suppression(0.25, 0.5, 20)
    found = detect(maps, [8, 16], suppression)
    assert len(found) == 3
    for index, result in enumerate(found):
        image = [level[index] for level in maps]
        assert_same(result, plain_detect(image, [8, 16], suppression))


@np.errstate(all="raise")
def test_nothing_odd_is_ever_a_detection_and_nothing_warns():
    for seed in range(20):
        for found in detect(random_maps(seed, 2, 3, wild=True), [8, 16]):
            assert np.isfinite(found.boxes).all()
            assert ((found.scores > EVALUATION.score_threshold) & np.isfinite(found.scores)).all()
            assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, -1.0, 1e38])
def test_a_box_without_a_finite_area_is_no_detection(bad):
    level = np.zeros((1, 5, 1, 2), np.float32)
    level[0, :, 0, 0] = [0.9, bad, 1, 1, 1]
    level[0, :, 0, 1] = [0.8, 1, 1, 1, 1]
    assert detect([level], [8])[0].scores.tolist() == pytest.approx([0.8])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_is_no_detection(bad):
    level = np.ones((1, 6, 1, 1), np.float32)
    level[0, 0] = bad
    assert detect([level], [8])[0].labels.tolist() == [1]


def test_only_the_best_candidates_are_looked_at():
    count = MAX_CANDIDATES + 10
    boxes = np.zeros((count, 4), np.float32)
    boxes[:, 0] = np.arange(count) * 2
    boxes[:, 2:] = boxes[:, :2] + 1
    scores = np.linspace(0.1, 0.9, count)
    scores[7] = 2.0
    result = nms(detections(boxes, scores, np.zeros(count)), 0.5, count)
    assert len(result.scores) == MAX_CANDIDATES
    assert result.boxes[:2, 0].tolist() == [14, 2 * (count - 1)]


def test_of_equal_candidates_the_first_ones_are_looked_at():
    count = 3 * MAX_CANDIDATES
    boxes = np.tile(np.array([0, 0, 1, 1], np.float32), (count, 1))
    result = nms(detections(boxes, np.full(count, 0.5), np.arange(count)), 0.5, count)
    assert result.labels.tolist() == list(range(MAX_CANDIDATES))


def test_a_collapsed_model_does_not_take_long():
    """Every class in every cell of a 640-pixel image: 672 000 candidates."""
    rng = np.random.default_rng(0)
    maps = [
        np.concatenate((rng.uniform(0.3, 0.6, (1, 80, s, s)), rng.uniform(0, 9, (1, 4, s, s))), 1)
        for s in (80, 40, 20)
    ]
    maps = [level.astype(np.float32) for level in maps]
    started = time.perf_counter()
    assert len(detect(maps, [8, 16, 32])[0].scores) == 300
    assert time.perf_counter() - started < 1.0  # 0.1 s when nothing else runs


def test_boxes_of_different_classes_do_not_suppress_each_other():
    found = detections([[0, 0, 10, 10]] * 3, [0.9, 0.8, 0.7], [0, 1, 0])
    assert nms(found, 0.5, 300).labels.tolist() == [0, 1]


def test_a_suppressed_box_suppresses_nothing():
    boxes = [[0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10]]  # the second overlaps both others
    assert nms(detections(boxes, [0.9, 0.8, 0.7], [0, 0, 0]), 0.3, 300).scores.tolist() == (
        pytest.approx([0.9, 0.7])
    )


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_nothing_found_is_empty_and_has_the_right_shapes(batch):
    found = detect([np.zeros((batch, 7, 2, 2), np.float32)], [8])
    assert len(found) == batch
    for one in found:
        assert (one.boxes.shape, one.scores.shape, one.labels.shape) == ((0, 4), (0,), (0,))
        assert (one.boxes.dtype, one.labels.dtype) == (np.float32, np.int64)


def test_iou_of_known_boxes():
    a = np.array([0, 0, 10, 10], dtype=np.float32)
    others = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [20, 0, 30, 10], [3, 3, 3, 3]], np.float32)
    np.testing.assert_allclose(iou(a, others), [1.0, 1 / 3, 0.0, 0.0], rtol=1e-6)


def test_decoding_places_a_box_around_the_centre_of_its_cell():
    level = np.zeros((2, 3 + 4, 2, 4), dtype=np.float32)
    level[1, 2, 1, 3] = 0.5  # second image, class 2, row 1, column 3
    level[1, 3:, 1, 3] = [1.0, 0.5, 2.0, 0.25]
    first, second = decode([level], [8], score_threshold=0.4)
    assert first.boxes.shape == (0, 4)
    np.testing.assert_allclose(second.boxes, [[20.0, 8.0, 44.0, 14.0]])
    assert (second.scores.tolist(), second.labels.tolist()) == ([0.5], [2])


def test_decoding_reads_every_level_with_its_own_stride():
    levels = [
        np.full((1, 1 + 4, 2, 2), 1.0, np.float32),
        np.full((1, 1 + 4, 1, 1), 1.0, np.float32),
    ]
    found = decode(levels, [8, 16], score_threshold=0.5)[0]
    assert found.boxes[0].tolist() == [-4.0, -4.0, 12.0, 12.0]
    assert found.boxes[-1].tolist() == [-8.0, -8.0, 24.0, 24.0]


def test_a_cell_gives_one_box_per_class_above_the_threshold():
    level = np.array([0.9, 0.6, 0.01, 1, 1, 1, 1], dtype=np.float32).reshape(1, 7, 1, 1)
    assert decode([level], [8], score_threshold=0.03)[0].labels.tolist() == [0, 1]


def test_a_score_must_exceed_the_threshold():
    level = np.array([0.5, 0.25, 1, 1, 1, 1], dtype=np.float32).reshape(1, 6, 1, 1)
    assert decode([level], [8], score_threshold=0.25)[0].labels.tolist() == [0]


def test_decoding_refuses_maps_without_strides():
    with pytest.raises(ValueError, match="longer"):
        decode([np.zeros((1, 5, 1, 1), np.float32)], [8, 16], 0.5)


def test_the_outputs_of_an_end_to_end_model_are_read_without_their_unused_rows():
    outputs = {
        "num_dets": np.array([[1], [0]], np.int32),
        "boxes": np.arange(16, dtype=np.float32).reshape(2, 2, 4),
        "scores": np.array([[0.5, 0], [0, 0]], np.float32),
        "classes": np.array([[3, -1], [-1, -1]], np.int32),
    }
    first, second = read_nms_outputs(outputs)
    assert_same(first, [([0, 1, 2, 3], 0.5, 3)])
    assert first.labels.dtype == np.int64
    assert second.boxes.shape == (0, 4)


def test_letterbox_keeps_the_aspect_ratio_and_centres_the_image():
    canvas, placement = letterbox(np.full((50, 100, 3), 200, np.uint8), (64, 64))
    assert canvas.shape == (64, 64, 3)
    assert (placement.scale, placement.pad_x, placement.pad_y) == (0.64, 0, 16)
    assert (canvas[:16] == 114).all()
    assert (canvas[16:48] == 200).all()
    assert (canvas[48:] == 114).all()


def test_letterbox_leaves_an_image_of_the_right_size_alone():
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    np.testing.assert_array_equal(letterbox(image, (32, 32))[0], image)


@settings(max_examples=100, deadline=None)
@given(
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
)
def test_any_image_is_fitted_whole_centred_and_undistorted(height, width, size):
    canvas, placement = letterbox(np.full((height, width, 3), 200, np.uint8), size)
    assert canvas.shape == (*size, 3)
    inside = np.argwhere(canvas[..., 0] == 200)
    top, left = inside.min(axis=0)
    bottom, right = inside.max(axis=0) + 1
    assert (left, top) == (placement.pad_x, placement.pad_y)
    assert len(inside) == (bottom - top) * (right - left)
    for found, wanted, before, after in (
        (bottom - top, height * placement.scale, top, size[0] - bottom),
        (right - left, width * placement.scale, left, size[1] - right),
    ):
        assert abs(found - wanted) <= 0.5 or found == 1
        assert after - before in (0, 1)  # of an odd border the larger half is right and below
    assert min(size[0] - (bottom - top), size[1] - (right - left)) == 0


@pytest.mark.parametrize(
    "shape", [(50, 100), (100, 37), (64, 64), (480, 640), (1, 1), (1, 500), (333, 7), (63, 65)]
)
def test_boxes_return_from_the_canvas_to_the_image(shape):
    _, placement = letterbox(np.zeros((*shape, 3), np.uint8), (64, 64))
    box = np.array([[0.1, 0.2, shape[1] - 0.3, shape[0] - 0.4]], dtype=np.float32)
    offset = np.array([placement.pad_x, placement.pad_y] * 2, dtype=np.float32)
    on_canvas = box * np.float32(placement.scale) + offset
    np.testing.assert_allclose(boxes_to_image(on_canvas, placement, shape), box, atol=1e-3)


def test_boxes_are_clipped_to_the_image():
    _, placement = letterbox(np.zeros((50, 100, 3), np.uint8), (64, 64))
    everything = np.array([[-5, -5, 80, 80]], dtype=np.float32)
    assert boxes_to_image(everything, placement, (50, 100)).tolist() == [[0, 0, 100, 50]]
