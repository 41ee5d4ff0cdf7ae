from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from reptrt.models.expand_attention import FUSED, expand_attention
from reptrt.models.graph import aten, trace
from tests.tiny_networks import SIZE, smooth_images, traced

Attend = Callable[[torch.Tensor], torch.Tensor]


class Attention(nn.Module):
    """Attention over the pixels of an image, the channels being its features."""

    def __init__(self, attend: Attend) -> None:
        super().__init__()
        self._attend = attend

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self._attend(images.flatten(2).transpose(1, 2))


def targets(graph_module: fx.GraphModule) -> list[object]:
    return [node.target for node in graph_module.graph.nodes]


@pytest.mark.parametrize(
    "attend",
    [
        lambda x: F.scaled_dot_product_attention(x, 2 * x, x + 1),
        lambda x: F.scaled_dot_product_attention(x, 2 * x, x + 1, scale=0.3),
        lambda x: F.scaled_dot_product_attention(x, x, x, x @ x.transpose(1, 2)),
        lambda x: F.scaled_dot_product_attention(x, x, x, x @ x.transpose(1, 2) >= 0),
    ],
    ids=["plain", "scale", "additive mask", "boolean mask"],
)
def test_attention_in_parts_is_the_same_function(attend: Attend) -> None:
    graph_module = trace(Attention(attend), (4, 4))
    images = smooth_images(3, seed=0, size=4)
    expected = graph_module(images)
    assert expand_attention(graph_module) == 1
    assert FUSED not in targets(graph_module)
    torch.testing.assert_close(graph_module(images), expected)


def test_attention_in_parts_by_hand() -> None:
    graph_module = trace(Attention(lambda x: F.scaled_dot_product_attention(x, x, x)), (1, 2))
    expand_attention(graph_module)
    images = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 2.0]).view(1, 3, 1, 2)  # 2 pixels, 3 channels
    probability = torch.sigmoid(torch.tensor(2 * 2 / 3**0.5))
    expected = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 2 * float(probability)]])
    torch.testing.assert_close(graph_module(images)[0], expected)


def test_a_transformers_scores_are_scaled_behind_their_product() -> None:
    graph_module, images = traced("vit"), smooth_images(3, seed=0)
    expected = graph_module(images)
    assert expand_attention(graph_module) == 1
    torch.testing.assert_close(graph_module(images), expected)
    nodes = {node.name: node for node in graph_module.graph.nodes}
    assert nodes["mul"].args == (nodes["matmul"], 16**-0.5)
    assert nodes["softmax"].args == (nodes["mul"], -1)
    assert nodes["matmul_1"].args[0] is nodes["softmax"]


def test_new_nodes_know_the_shapes_of_their_values() -> None:
    graph_module = traced("vit", batch_size=3)
    expand_attention(graph_module)
    seen = []

    class Check(fx.Interpreter):
        def run_node(self, node: fx.Node) -> object:
            value = super().run_node(node)
            if node.target in (aten.matmul.default, aten.mul.Tensor, aten.softmax.int):
                seen.append(node.name)
                assert node.meta["val"].shape == value.shape
                assert node.meta["val"].dtype == value.dtype
            return value

    Check(graph_module).run(torch.zeros(3, 3, SIZE, SIZE))
    assert seen == ["matmul", "mul", "softmax", "matmul_1"]


def test_a_dynamic_batch_stays_dynamic() -> None:
    graph_module = traced("vit")
    expand_attention(graph_module)
    (softmax,) = [n for n in graph_module.graph.nodes if n.target is aten.softmax.int]
    assert isinstance(softmax.meta["val"].shape[0], torch.SymInt)
    assert graph_module(torch.zeros(5, 3, SIZE, SIZE)).shape[0] == 5


def test_causal_attention_is_left_fused() -> None:
    module = Attention(lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True))
    graph_module = trace(module, (4, 4))
    assert expand_attention(graph_module) == 0
    assert FUSED in targets(graph_module)


@pytest.mark.parametrize("name", ["plain", "swin"])
def test_a_network_without_fused_attention_is_left_alone(name: str) -> None:
    graph_module = traced(name)
    before = targets(graph_module)
    assert expand_attention(graph_module) == 0
    assert targets(graph_module) == before
