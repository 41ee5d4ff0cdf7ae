"""What a network is for, as its outputs tell."""

from __future__ import annotations

import pytest
import torch

from reptrt.models.task import OutputError, count_classes, list_outputs, recognize_task

SIZE = (64, 32)


def _maps(channels: int = 7) -> list[torch.Tensor]:
    return [torch.rand(2, channels, 64 // stride, 32 // stride) for stride in (8, 16)]


def test_logits_are_a_classifiers() -> None:
    assert recognize_task([torch.randn(2, 10)], SIZE) == "classification"
    assert recognize_task([torch.randn(2, 10)], SIZE, batch_size=2) == "classification"


def test_rows_of_boxes_of_one_image_are_no_logits() -> None:
    assert recognize_task([torch.randn(100, 6)], SIZE, batch_size=1) == "generic"
    assert recognize_task([torch.randn(2, 1)], SIZE) == "generic"


def test_maps_of_several_strides_with_scores_are_a_detectors() -> None:
    assert recognize_task(_maps(), SIZE) == "detection"
    assert count_classes("detection", [tuple(m.shape) for m in _maps()], SIZE) == 3


@pytest.mark.parametrize(
    "maps",
    [
        _maps()[:1],
        [_maps()[0], _maps(8)[1]],
        _maps(4),
        [-m for m in _maps()],
        [_maps()[0], _maps()[0]],
        [torch.rand(2, 7, 8, 4), torch.rand(2, 7, 3, 2)],
        [torch.rand(2, 7, 8, 2), torch.rand(2, 7, 4, 1)],
        [torch.rand(2, 7), torch.rand(2, 7)],
    ],
    ids=["one", "channels", "no-class", "no-scores", "one-stride", "cut", "stretched", "vectors"],
)
def test_anything_else_is_generic(maps: list[torch.Tensor]) -> None:
    assert recognize_task(maps, SIZE) == "generic"


def test_outputs_are_found_in_sequences_and_dicts_in_order() -> None:
    a, b, c = torch.zeros(1), torch.ones(1), torch.full((1,), 2.0)
    found = list_outputs({"a": a, "more": [b, None, (c,)]})
    assert [float(tensor) for tensor in found] == [0.0, 1.0, 2.0]
    with pytest.raises(OutputError, match="returns no tensor"):
        list_outputs([])
    with pytest.raises(OutputError, match="returns a str"):
        list_outputs([a, "text"])
