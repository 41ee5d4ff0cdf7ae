from __future__ import annotations

import pytest
import torch

from reptrt.models.onnx_import.operators import pad

IMAGE = torch.arange(24.0).reshape(1, 1, 4, 6)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("sides", [(1, 0), (0, 2)])
def test_a_pad_of_one_axis_alone_continues_it(mode: str, sides: tuple[int, int]) -> None:
    down, right = sides
    padded = pad(IMAGE, (0, 0, down, right, 0, 0, down, right), mode, 0.0)
    assert padded.shape == (1, 1, 4 + 2 * down, 6 + 2 * right)
    inner = padded[:, :, down : 4 + down, right : 6 + right]
    assert torch.equal(inner, IMAGE)
    first = {"reflect": (1, 2), "replicate": (0, 0), "circular": (3, 4)}[mode]
    corner = IMAGE[0, 0, first[0] if down else 0, first[1] if right else 0]
    assert padded[0, 0, 0, 0] == corner
