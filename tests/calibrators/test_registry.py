from __future__ import annotations

import pytest
import torch
from torch import fx, nn

from reptrt.calibrators.auto import choose_calibrator
from reptrt.calibrators.base import Calibrator
from reptrt.calibrators.names import MODULES, UnknownCalibratorError
from reptrt.calibrators.registry import create_calibrator, list_calibrators
from reptrt.models.fuse import reparameterize
from reptrt.models.graph import trace
from reptrt.models.yolov6.blocks import RepVggBlock
from tests.tiny_networks import NETWORKS, quantized, smooth_images, traced


class Mixture(nn.Module):
    """Convolution, then a linear that may read a LayerNorm, then attention written by hand, or none."""

    def __init__(self, norm: bool, attends: bool, fuses: bool) -> None:
        super().__init__()
        self.attends = attends
        self.stem = RepVggBlock(3, 8, stride=2) if fuses else nn.Conv2d(3, 8, 2, 2)
        self.norm = nn.LayerNorm(8) if norm else nn.Identity()
        self.qkv, self.head = nn.Linear(8, 24), nn.Linear(8, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norm(self.stem(images).flatten(2).transpose(1, 2))).chunk(3, -1)
        if self.attends:
            v = ((q * 0.3) @ k.transpose(1, 2)).softmax(-1) @ v
        return self.head(v.mean(1))


def test_every_calibrator_is_listed_with_a_summary() -> None:
    known = list_calibrators()
    assert list(known) == list(MODULES)
    assert {"repapq", "brecq", "qdrop", "best", "minmax", "entropy", "mae"} <= known.keys()
    for name, calibrator in known.items():
        assert issubclass(calibrator, Calibrator)
        assert calibrator.name == name
        assert calibrator.summary
        assert "\n" not in calibrator.summary


def test_a_calibrator_is_created_by_its_name() -> None:
    assert all(create_calibrator(name).name == name for name in list_calibrators())


def test_an_unknown_name_lists_the_legal_ones_and_the_nearest() -> None:
    with pytest.raises(UnknownCalibratorError) as caught:
        create_calibrator("minmx")
    message = str(caught.value)
    assert "did you mean 'minmax'?" in message
    assert all(name in message for name in list_calibrators())
    assert "\n" not in message
    assert caught.value.exit_code == 2


def test_a_name_without_a_neighbour_gets_no_guess() -> None:
    with pytest.raises(UnknownCalibratorError) as caught:
        create_calibrator("zzzzzz")
    assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize("is_fused", [False, True])
def test_auto_learns_a_reparameterized_network_in_either_form(is_fused: bool) -> None:
    network = NETWORKS["reparameterized"]()
    loaded = reparameterize(network) if is_fused else network
    assert choose_calibrator(loaded, traced("reparameterized").graph) == "repapq"


@pytest.mark.parametrize("name", ["vit", "swin"])
@pytest.mark.parametrize(("bits", "method"), [(8, "repq-vit"), (6, "repquant"), (4, "repquant")])
def test_auto_knows_transformers_and_learns_below_8_bits(name: str, bits: int, method: str) -> None:
    assert choose_calibrator(NETWORKS[name](), traced(name).graph, bits) == method


@pytest.mark.parametrize("name", ["plain", "residual"])
def test_auto_takes_the_best_baseline_for_any_other_network(name: str) -> None:
    assert choose_calibrator(NETWORKS[name](), traced(name).graph) == "best"


def test_auto_learns_a_graph_from_a_file_whose_blocks_nobody_knows() -> None:
    imported = fx.symbolic_trace(NETWORKS["plain"]())
    assert choose_calibrator(imported, traced("plain").graph) == "repapq"


@pytest.mark.parametrize(
    ("norm", "attends", "fuses", "method"),
    [
        (True, True, False, "repq-vit"),
        (True, True, True, "repq-vit"),  # as TinyViT, whose convolutions with BatchNorm fuse
        (False, True, False, "best"),
        (False, True, True, "repapq"),  # as LeViT and FastViT
        (True, False, False, "best"),  # as ConvNeXt
        (True, False, True, "repapq"),
    ],
)
def test_auto_reads_mixtures_off_the_graph(
    norm: bool, attends: bool, fuses: bool, method: str
) -> None:
    network = Mixture(norm, attends, fuses).eval()
    graph = trace(reparameterize(network), (8, 8)).graph
    assert choose_calibrator(network, graph) == method
    imported = fx.GraphModule(network, fx.Graph())
    assert choose_calibrator(imported, graph) == ("repapq" if method == "best" else method)


@pytest.mark.parametrize("name", sorted(list_calibrators()))
def test_a_network_in_which_nothing_is_quantized_calibrates_and_stays_what_it_is(name: str) -> None:
    """Where INT8 pays nowhere, every layer stays float."""
    model, images = quantized(traced("plain"), keep_float=["*"]), smooth_images(8, seed=1)
    before = model(images)
    create_calibrator(name).calibrate(model, [images])
    torch.testing.assert_close(model(images), before)
