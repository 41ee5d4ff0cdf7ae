"""The training loss of the demo detector, and the augmentation of its batches."""

import numpy as np
import pytest
import torch

from reptrt.models.demo.batches import random_batch
from reptrt.models.demo.loss import Targets, detection_loss, generalized_iou
from reptrt.models.demo.scenes import Scene, generate_scene
from reptrt.models.demo.train import learning_rate


def maps_that_predict(box, label, confidence, stride=8, cells=8):
    """Return raw maps of one level in which every cell inside `box` predicts it exactly."""
    centre = (torch.arange(cells) + 0.5) * stride
    y, x = torch.meshgrid(centre, centre, indexing="ij")
    distances = torch.stack((x - box[0], y - box[1], box[2] - x, box[3] - y)) / stride
    logits = torch.full((3, cells, cells), -confidence)
    logits[label, (distances > 0).all(dim=0)] = confidence
    return [(logits[None], distances[None])]


def one_target(box, label):
    return Targets(torch.tensor([[box]]), torch.tensor([[label]]), torch.tensor([[True]]))


def test_generalized_iou_of_known_boxes():
    a = torch.tensor([0.0, 0.0, 10.0, 10.0])
    others = torch.tensor([[0.0, 0, 10, 10], [5.0, 0, 15, 10], [20.0, 0, 30, 10]])
    torch.testing.assert_close(generalized_iou(a, others), torch.tensor([1.0, 1 / 3, -1 / 3]))


def test_loss_of_a_perfect_prediction_vanishes():
    box = [9.0, 9.0, 33.0, 33.0]  # three cells on a side, fewer than are assigned at most
    loss = detection_loss(maps_that_predict(box, 1, 12.0), [8], one_target(box, 1))
    assert float(loss) < 1e-3


@pytest.mark.parametrize("wrong", [([9.0, 9.0, 33.0, 33.0], 2), ([9.0, 9.0, 41.0, 33.0], 1)])
def test_wrong_class_or_wrong_box_costs(wrong):
    target = one_target([9.0, 9.0, 33.0, 33.0], 1)
    assert float(detection_loss(maps_that_predict(*wrong, 12.0), [8], target)) > 0.3


def test_padding_does_not_change_the_loss():
    box = [9.0, 9.0, 33.0, 33.0]
    maps = maps_that_predict([8.0, 9.0, 40.0, 33.0], 1, 2.0)
    padded = Targets(
        torch.tensor([[box, [0.0, 0.0, 64.0, 64.0]]]),
        torch.tensor([[1, 0]]),
        torch.tensor([[True, False]]),
    )
    expected = detection_loss(maps, [8], one_target(box, 1))
    torch.testing.assert_close(detection_loss(maps, [8], padded), expected)


def test_augmented_boxes_follow_their_shapes():
    image = np.zeros((32, 32, 3), np.uint8)
    image[4:10, 5:23] = 255
    scene = Scene(image, np.array([[5, 4, 23, 10]], np.float32), np.array([2]))
    images, targets = random_batch([scene], 32, np.random.default_rng(0))
    seen = set()
    for picture, (x1, y1, x2, y2) in zip(images, targets.boxes[:, 0].int().tolist(), strict=True):
        seen.add((x1, y1, x2, y2))
        inside = picture[:, y1:y2, x1:x2]
        assert inside.numel() == 3 * 6 * 18
        assert inside.unique().numel() == 1
        assert (picture == inside[0, 0, 0]).sum() == inside.numel()
    assert len(seen) == 8


def test_batches_are_padded_to_the_most_boxes_and_repeat_with_their_seed():
    pool = [generate_scene(seed, 64) for seed in range(6)]
    images, targets = random_batch(pool, 8, np.random.default_rng(3))
    again, _ = random_batch(pool, 8, np.random.default_rng(3))
    torch.testing.assert_close(images, again)
    assert targets.present.sum(dim=1).max() == targets.boxes.shape[1]
    assert targets.boxes[~targets.present].abs().sum() == 0


def test_learning_rate_warms_up_and_ends_low():
    assert learning_rate(0, 1000) < learning_rate(100, 1000) < learning_rate(200, 1000)
    assert learning_rate(999, 1000) < learning_rate(200, 1000) / 50
