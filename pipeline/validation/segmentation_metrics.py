"""Mean intersection over union of class maps, image by image, so that images can be drawn again.

PyTorch is imported by who enlarges maps: workers that evaluate classifiers and detectors start without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from reptrt.pipeline.data.masks import VOID

if TYPE_CHECKING:
    import torch

Classes = NDArray[np.uint8]

_NUM_CODES = 256


class MaskAccuracy:
    """Intersections and unions of every class in every image that was added.

    Args:
        num_images: how many images there will be.
    """

    def __init__(self, num_images: int) -> None:
        self._hits = np.zeros((num_images, _NUM_CODES), dtype=np.int64)
        self._unions = np.zeros_like(self._hits)

    def update(self, index: int, classes: Classes, mask: Classes) -> None:
        """Add the `classes` `[h, w]` found in the image at `index`, and its `mask` `[h, w]`."""
        counted = mask != VOID
        found, wanted = classes[counted], mask[counted]
        counts = [
            np.bincount(values, minlength=_NUM_CODES)
            for values in (found, wanted, found[found == wanted])
        ]
        self._hits[index] = counts[2]
        self._unions[index] = counts[0] + counts[1] - counts[2]

    def mean_iou(self, drawn: NDArray[np.int64] | None = None) -> float:
        """Percent, mean over the classes that are found or wanted in all images, or in `drawn` ones."""
        chosen = slice(None) if drawn is None else drawn
        hits, unions = self._hits[chosen].sum(0), self._unions[chosen].sum(0)
        seen = unions > 0
        return 100.0 * float(np.mean(hits[seen] / unions[seen])) if seen.any() else 0.0


def read_classes(output: NDArray[Any], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Class of every pixel, of an output that `reptrt.models.task.is_class_map` takes.

    Scores are enlarged to `size` first, bilinearly, as training scripts do; classes are repeated.

    Args:
        output: scores `[n, classes, h, w]`; of the foreground alone `[n, 1, h, w]`, above 0.5 where
            all are in 0..1, else above 0; or classes `[n, h, w]` or `[n, 1, h, w]`, integers.
        size: height and width of the network's input.

    Returns:
        Classes `[n, height, width]`.
    """
    import torch
    import torch.nn.functional as F

    if not np.issubdtype(output.dtype, np.floating):
        maps = torch.from_numpy(
            output.reshape(len(output), 1, *output.shape[-2:]).astype(np.float32)
        )
        return _bytes(F.interpolate(maps, size, mode="nearest")[:, 0])
    scores = torch.from_numpy(np.ascontiguousarray(output, dtype=np.float32))
    scores = scores[:, None] if scores.ndim == 3 else scores
    is_share = bool(((scores >= 0) & (scores <= 1)).all())
    if tuple(scores.shape[-2:]) != size:
        scores = F.interpolate(scores, size, mode="bilinear", align_corners=False)
    if scores.shape[1] == 1:
        return _bytes(scores[:, 0] > (0.5 if is_share else 0.0))
    return _bytes(scores.argmax(1))


def _bytes(classes: torch.Tensor) -> NDArray[np.uint8]:
    found: NDArray[np.uint8] = classes.numpy().astype(np.uint8)
    return found
