"""What is an attention, on the smallest networks that show it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from reptrt.calibrators.quantized.find_attention import find_attention, has_attention
from reptrt.models.graph import trace
from tests.tiny_networks import traced

Attend = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Attention(nn.Module):
    """A function of [N, 16, 3] pixels and a constant [16, 16]."""

    def __init__(self, attend: Attend) -> None:
        super().__init__()
        self._attend = attend
        self.constant = nn.Parameter(torch.zeros(16, 16))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self._attend(images.flatten(2).transpose(1, 2), self.constant)


def graph_of(attend: Attend) -> fx.Graph:
    return trace(Attention(attend), (4, 4)).graph


def found(attend: Attend) -> list[tuple[str, str]]:
    return [(scores.name, product.name) for scores, product in find_attention(graph_of(attend))]


def scores(x: torch.Tensor) -> torch.Tensor:
    return x @ x.transpose(1, 2)


@pytest.mark.parametrize(
    "attend",
    [
        lambda x, c: scores(x).softmax(-1) @ x,
        lambda x, c: (scores(x) * 0.5 + c).softmax(-1) @ x,
        lambda x, c: (scores(x) / 3).masked_fill(c > 0, -9.0).softmax(-1) @ x,
        lambda x, c: (c + scores(x).reshape(-1, 1, 16, 16)).reshape(-1, 16, 16).softmax(-1) @ x,
        lambda x, c: torch.bmm(torch.bmm(x, x.transpose(1, 2)).softmax(-1), x),
        lambda x, c: scores(x).softmax(-2).transpose(1, 2) @ x,
        lambda x, c: F.dropout(scores(x).softmax(-1), training=False) @ x,
    ],
    ids=["plain", "bias", "mask", "reshapes", "bmm", "transpose", "dropout"],
)
def test_two_products_around_a_softmax_are_an_attention(attend: Attend) -> None:
    ((first, second),) = found(attend)
    assert first != second


@pytest.mark.parametrize(
    "attend",
    [
        lambda x, c: F.scaled_dot_product_attention(x, x, x),
        lambda x, c: x.softmax(-1).transpose(1, 2) @ x,
        lambda x, c: (c @ x).softmax(-1).transpose(1, 2) @ x,
        lambda x, c: scores(x).softmax(-1) @ c,
        lambda x, c: x.transpose(1, 2) @ scores(x).softmax(-1),
        lambda x, c: torch.exp(scores(x)).softmax(-1) @ x,
        lambda x, c: (scores(x).softmax(-1) + c) @ x,
    ],
    ids=["fused", "no scores", "constant query", "constant value", "second operand",
         "changed scores", "changed probabilities"],
)  # fmt: skip
def test_anything_else_is_none(attend: Attend) -> None:
    assert found(attend) == []


def test_probabilities_that_others_read_are_left_alone() -> None:
    def attend(x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        probabilities = scores(x).softmax(-1)
        return probabilities @ x + probabilities.mean()

    assert found(attend) == []


def test_every_window_attention_of_a_swin_is_found() -> None:
    pairs = [(a.name, b.name) for a, b in find_attention(traced("swin").graph)]
    assert pairs == [("matmul", "matmul_1"), ("matmul_2", "matmul_3")]


@pytest.mark.parametrize(
    "attend",
    [
        lambda x, c: F.scaled_dot_product_attention(x, x, x),
        lambda x, c: scores(x).softmax(-1) @ x,
        lambda x, c: F.multi_head_attention_forward(
            *(x, x, x, 3, 1, c[:9, :3], c[0, :9], None, None, False, 0.0, c[:3, :3], c[0, :3]),
            training=False,
        )[0],
    ],
    ids=["fused", "by hand", "PyTorch's"],
)
def test_a_network_has_attention_whoever_wrote_it(attend: Attend) -> None:
    assert has_attention(graph_of(attend))


@pytest.mark.parametrize(
    "attend",
    [lambda x, c: scores(x) @ x, lambda x, c: x.softmax(-1) @ c[:3], lambda x, c: x + c[0, 0]],
    ids=["no softmax", "one product", "no product"],
)
def test_a_network_without_it_has_none(attend: Attend) -> None:
    assert not has_attention(graph_of(attend))
