"""The first images of a stream of batches."""

from __future__ import annotations

import math

import pytest
import torch

from reptrt.calibrators.feed import first_images


@pytest.mark.parametrize(
    ("count", "pixels", "at_once", "expected"),
    [
        (100, math.inf, math.inf, [8, 8, 4]),
        (10, math.inf, math.inf, [8, 8]),  # batches stay whole
        (10, math.inf, 160.0, [8, 2]),
        (100, math.inf, 50.0, [3, 3, 2, 3, 3, 2, 3, 1]),
        (100, 160.0, 80.0, [5, 3, 2]),
        (100, 1.0, 1.0, [1]),  # one image has more pixels than that
        (0, math.inf, math.inf, []),
    ],
)
def test_they_are_bounded_by_number_and_by_pixels(
    count: int, pixels: float, at_once: float, expected: list[int]
) -> None:
    batches = torch.arange(20.0).view(20, 1, 1, 1).expand(20, 3, 4, 4).split(8)
    found = list(first_images(batches, count, pixels, at_once))
    assert [len(one) for one in found] == expected
    flat = [float(image[0, 0, 0]) for one in found for image in one]
    assert flat == list(range(len(flat)))
