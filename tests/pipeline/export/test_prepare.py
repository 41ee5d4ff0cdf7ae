from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from reptrt.calibrators.quantized.find_attention import Softmax
from reptrt.models.expand_attention import FUSED
from reptrt.models.graph import TraceError
from reptrt.models.load import LoadedModel
from reptrt.models.spec import Preprocess, Task
from reptrt.pipeline.export.prepare import OutputError, open_network
from reptrt.pipeline.recipe import Recipe
from tests.tiny_networks import NETWORKS, randomize, smooth_images


class TwoLogits(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.conv(x).mean((2, 3))
        return y, 2 * y


def loaded(module: nn.Module, task: Task = "classification") -> LoadedModel:
    preprocess = Preprocess((16, 16), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    return LoadedModel(
        name="user:net",
        module=randomize(module),
        task=task,
        preprocess=preprocess,
        classes=tuple("abcdefghij"),
        num_classes=10,
        weights_path=Path("weights.pth"),
        weights_sha256="0" * 64,
    )


def test_a_network_is_reparameterized_traced_and_placed() -> None:
    model = loaded(NETWORKS["reparameterized"]())
    network = open_network(model, Recipe(model="user:net"))
    assert list(network.quantized.weight_quantizers) == [
        *("0.rbr_reparam", "1.rbr_reparam", "2.reparam_conv", "3.reparam_conv", "6")
    ]
    scales = [float(q.scale.max()) for q in network.quantized.activation_quantizers.values()]
    assert scales == [1.0] * 5
    images = smooth_images(3, seed=0)
    with network.quantized.float_mode():
        torch.testing.assert_close(network.quantized(images)[0], model.module(images))


def test_bits_and_float_layers_come_from_the_recipe() -> None:
    recipe = Recipe(model="m", weight_bits=4, activation_bits=6, keep_float=("6", "0.*"))
    quantized = open_network(loaded(NETWORKS["reparameterized"]()), recipe).quantized
    depthwise = "2.reparam_conv"  # `depthwise_bits`
    bits = {name: one.grid.num_bits for name, one in quantized.weight_quantizers.items()}
    assert bits == {"1.rbr_reparam": 4, depthwise: 8, "3.reparam_conv": 4}
    assert {q.grid.num_bits for q in quantized.activation_quantizers.values()} == {6}
    assert set(quantized.placement.float_layers) == {"6", "0.rbr_reparam"}


def test_the_card_of_a_classifier_names_its_logits_and_classes() -> None:
    model = loaded(NETWORKS["plain"]())
    card = open_network(model, Recipe(model="m")).card
    assert (card.model, card.task, card.outputs, card.strides) == (
        *("user:net", "classification", ("logits",), ()),
    )
    assert (card.num_classes, card.classes) == (10, tuple("abcdefghij"))
    assert card.preprocess == model.preprocess


def test_the_card_of_a_detector_names_maps_after_their_strides() -> None:
    card = open_network(loaded(NETWORKS["detector"](), "detection"), Recipe(model="m")).card
    assert (card.outputs, card.strides) == (("p1", "p2"), (2, 4))


def test_a_fixed_batch_is_what_the_network_runs_on() -> None:
    network = open_network(loaded(NETWORKS["plain"]()), Recipe(model="m", batch_size=3))
    placeholder = next(
        node for node in network.quantized.graph_module.graph.nodes if node.op == "placeholder"
    )
    assert placeholder.meta["val"].shape[0] == 3


def test_a_classifier_with_two_outputs_is_refused() -> None:
    with pytest.raises(OutputError, match="a classifier must return logits") as caught:
        open_network(loaded(TwoLogits()), Recipe(model="m"))
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_network_that_cannot_be_recorded_is_refused() -> None:
    with pytest.raises(TraceError):
        open_network(loaded(nn.Conv2d(4, 4, 1)), Recipe(model="m"))


@pytest.mark.parametrize("softmax", ["float", "uniform", "log2", "fp8"])
def test_attention_is_quantized_as_the_recipe_says(softmax: Softmax) -> None:
    model = loaded(NETWORKS["vit"]())
    recipe = Recipe(model="m", softmax=softmax, activation_bits=6)
    network = open_network(model, recipe, "rtx-40")
    sites = network.quantized.placement.attention
    assert len(sites) == (softmax != "float")
    assert FUSED in [node.target for node in network.float_graph.graph.nodes]
    images = smooth_images(3, seed=0)
    with network.quantized.float_mode():
        torch.testing.assert_close(network.quantized(images)[0], model.module(images))
    for site in sites:
        quantizers = network.quantized.activation_quantizers
        bits = 8 if softmax == "fp8" else 6
        assert [quantizers[name].grid.num_bits for name in site.points] == [bits] * 4
