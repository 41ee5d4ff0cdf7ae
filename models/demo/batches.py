"""Training batches of the demo detector: a pool of scenes, turned, mirrored and recoloured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from reptrt.models.demo.loss import Targets
from reptrt.models.demo.scenes import Scene


def random_batch(
    pool: Sequence[Scene], batch_size: int, rng: np.random.Generator
) -> tuple[torch.Tensor, Targets]:
    """Draw augmented scenes; return images `[n, 3, h, w]` in [0, 1] and their targets."""
    chosen = [_augment(pool[index], rng) for index in rng.integers(len(pool), size=batch_size)]
    images = np.stack([scene.image for scene in chosen]).transpose(0, 3, 1, 2)
    return torch.from_numpy(images.astype(np.float32) / 255.0), _pad(chosen)


def _augment(scene: Scene, rng: np.random.Generator) -> Scene:
    """Mirror, transpose, and permute or invert the colours: no shape changes its class."""
    image, boxes = scene.image, scene.boxes
    side = image.shape[0]
    mirror_x, mirror_y, transpose, invert = rng.random(4) < 0.5
    if mirror_x:
        image = image[:, ::-1]
        boxes = _mirror(boxes, (2, 1, 0, 3), side)
    if mirror_y:
        image = image[::-1]
        boxes = _mirror(boxes, (0, 3, 2, 1), side)
    if transpose:
        image, boxes = image.transpose(1, 0, 2), boxes[:, [1, 0, 3, 2]]
    if invert:
        image = 255 - image
    return Scene(image[..., rng.permutation(3)], boxes, scene.labels)


def _mirror(
    boxes: NDArray[np.float32], order: tuple[int, int, int, int], side: int
) -> NDArray[np.float32]:
    """Swap two coordinates of each box as `order` says and measure them from the other edge."""
    mirrored = boxes[:, order]
    moved = [index for index, source in enumerate(order) if index != source]
    mirrored[:, moved] = side - mirrored[:, moved]
    return mirrored


def _pad(scenes: Sequence[Scene]) -> Targets:
    most = max(len(scene.labels) for scene in scenes)
    boxes = torch.zeros(len(scenes), most, 4)
    labels = torch.zeros(len(scenes), most, dtype=torch.int64)
    present = torch.zeros(len(scenes), most, dtype=torch.bool)
    for row, scene in enumerate(scenes):
        count = len(scene.labels)
        boxes[row, :count] = torch.from_numpy(np.ascontiguousarray(scene.boxes))
        labels[row, :count] = torch.from_numpy(scene.labels)
        present[row, :count] = True
    return Targets(boxes, labels, present)
