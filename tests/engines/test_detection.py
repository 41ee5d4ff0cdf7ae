"""Letterbox, decoding and NMS against hand-computed values and a plain-loop reference."""

import numpy as np
import pytest

from engines.detection import Detections, boxes_to_image, decode, detect, iou, letterbox, nms


def plain_iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


def plain_nms(boxes, scores, labels, threshold, limit):
    kept = []
    for index in sorted(range(len(scores)), key=lambda i: -scores[i]):
        rivals = [k for k in kept if labels[k] == labels[index]]
        if all(plain_iou(boxes[k], boxes[index]) <= threshold for k in rivals):
            kept.append(index)
    return kept[:limit]


def random_detections(seed: int, count: int) -> Detections:
    rng = np.random.default_rng(seed)
    corner, sides = rng.uniform(0, 60, (count, 2)), rng.uniform(5, 40, (count, 2))
    boxes = np.concatenate((corner, corner + sides), axis=1).astype(np.float32)
    scores = rng.random(count).astype(np.float32)
    return Detections(boxes, scores, rng.integers(0, 3, count))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("limit", [300, 7])
def test_nms_keeps_what_a_plain_loop_keeps(seed, limit):
    found = random_detections(seed, 200)
    kept = plain_nms(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), 0.3, limit)
    result = nms(found, 0.3, limit)
    assert 0 < len(kept) < 200
    np.testing.assert_array_equal(result.boxes, found.boxes[kept])
    np.testing.assert_array_equal(result.scores, found.scores[kept])
    np.testing.assert_array_equal(result.labels, found.labels[kept])


def test_boxes_of_different_classes_do_not_suppress_each_other():
    box = np.array([[0, 0, 10, 10]] * 3, dtype=np.float32)
    scores = np.array([0.9, 0.8, 0.7], dtype=np.float32)
    assert nms(Detections(box, scores, np.array([0, 1, 0])), 0.5, 300).labels.tolist() == [0, 1]


def test_nms_of_nothing_is_nothing():
    empty = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
    assert nms(empty, 0.5, 300).boxes.shape == (0, 4)


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


def test_decoding_refuses_maps_without_strides():
    with pytest.raises(ValueError, match="longer"):
        decode([np.zeros((1, 5, 1, 1), np.float32)], [8, 16], 0.5)


def test_detect_removes_the_duplicates_that_decoding_finds():
    level = np.zeros((1, 5, 1, 2), dtype=np.float32)
    level[0, :, 0, 0] = [0.9, 0.5, 0.5, 1.5, 0.5]
    level[0, :, 0, 1] = [0.8, 1.5, 0.5, 0.5, 0.5]
    (found,) = detect([level], [8])
    assert found.scores.tolist() == pytest.approx([0.9])
    np.testing.assert_allclose(found.boxes, [[0, 0, 16, 8]])


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


@pytest.mark.parametrize("shape", [(50, 100), (100, 37), (64, 64), (480, 640)])
def test_boxes_return_from_the_canvas_to_the_image(shape):
    _, placement = letterbox(np.zeros((*shape, 3), np.uint8), (64, 64))
    box = np.array([[1, 2, shape[1] - 3, shape[0] - 4]], dtype=np.float32)
    offset = np.array([placement.pad_x, placement.pad_y] * 2, dtype=np.float32)
    on_canvas = box * np.float32(placement.scale) + offset
    np.testing.assert_allclose(boxes_to_image(on_canvas, placement, shape), box, atol=1e-3)


def test_boxes_are_clipped_to_the_image():
    _, placement = letterbox(np.zeros((50, 100, 3), np.uint8), (64, 64))
    everything = np.array([[-5, -5, 80, 80]], dtype=np.float32)
    assert boxes_to_image(everything, placement, (50, 100)).tolist() == [[0, 0, 100, 50]]
