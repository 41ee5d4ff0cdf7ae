from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from reptrt.calibrators.quantized.quantized_model import QuantizedModel
from reptrt.calibrators.quantized.quantizers import IntegerGrid
from reptrt.calibrators.transformers.attention_channels import find_keys, find_value_sites
from reptrt.calibrators.transformers.percentiles import set_best_range
from reptrt.calibrators.transformers.repq_vit import ReparameterizingPass
from reptrt.calibrators.transformers.scale_reparam import reparameterize, unsigned_per_channel
from reptrt.models.graph import trace
from tests.reconstructing import float_values
from tests.tiny_networks import quantized
from tests.tiny_transformers import TRANSFORMERS, float_output, images_for, transformer

EXACT = 1e-9  # of the largest output, in float64
every_network = pytest.mark.parametrize("name", TRANSFORMERS)


def in_double(name: str, bits: int, softmax: str) -> QuantizedModel:
    model = transformer(name, (bits, bits), softmax)  # type: ignore[arg-type]
    model.graph_module.double()
    return model


def relative_change(model: QuantizedModel, images: torch.Tensor, before: torch.Tensor) -> float:
    return float((float_output(model, images) - before).abs().max() / before.abs().max())


@pytest.mark.parametrize("softmax", ["float", "uniform"])
@every_network
def test_every_attention_is_a_site_by_the_outputs_that_make_its_values(
    name: str, softmax: str
) -> None:
    model = transformer(name, softmax=softmax)  # type: ignore[arg-type]
    sites = find_value_sites(model)
    assert len(sites) == (2 if "vit" in name else 4)
    for call, site in sites.items():
        layer = model.placement.layers[site.owner.name]
        width = site.num_channels
        assert site.rows.tolist() == list(range(2 * width, 3 * width))  # of query, key and value
        (reader,) = site.readers
        assert model.placement.layers[reader.name] == layer.replace("qkv", "proj")
        assert site.keeps_zero == (softmax == "uniform")
        assert (call in reader.all_input_nodes) == (softmax == "float")


@pytest.mark.parametrize(("bits", "softmax"), [(8, "float"), (4, "float"), (4, "uniform")])
@every_network
def test_folding_keeps_the_float_network_and_the_codes_of_weights(
    name: str, bits: int, softmax: str
) -> None:
    model, images = in_double(name, bits, softmax), images_for(name, 3).double()
    before = float_output(model, images)
    for call, site in find_value_sites(model).items():
        owner = model.placement.layers[site.owner.name]
        quantizer, weight = model.weight_quantizers[owner], model.weight_of(owner)
        set_best_range(quantizer, weight)
        codes, steps = quantizer.quantize(weight), quantizer.scale.clone()
        channels = unsigned_per_channel(bits, site).double()
        x = float_values(model, images)[call.args[0]]
        ReparameterizingPass(model).fit_channels(site, channels, site.channels_last(x))
        factor, summand = reparameterize(model, site, channels)
        assert torch.equal(quantizer.quantize(weight), codes)
        assert not torch.equal(quantizer.scale, steps)
        if softmax == "uniform":
            assert not summand.any()
        torch.testing.assert_close(float_values(model, images)[call.args[0]], x * factor + summand)
    assert relative_change(model, images, before) < EXACT


class Attention(nn.Module):
    """Attention written by hand on maps of 8 tokens of 8; `join` makes the projection's input."""

    def __init__(
        self, join: Callable[[Attention, torch.Tensor, torch.Tensor], torch.Tensor]
    ) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.proj, self.join = nn.Linear(8, 8), join

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        probabilities = (self.q(x) @ self.k(x).transpose(-2, -1)).softmax(-1)
        return self.proj(self.join(self, probabilities, self.v(x)))


def attention(join: Callable[..., torch.Tensor], softmax: str = "float") -> QuantizedModel:
    return quantized(trace(Attention(join).eval(), (8, 8)), softmax=softmax)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("join", "expected"),
    [
        (lambda m, p, v: p @ v, list(range(8))),
        (lambda m, p, v: (p @ v).reshape(-1, 8, 2, 4).transpose(2, 3).flatten(2), [0, 4, 1, 5, 2, 6, 3, 7]),
        (lambda m, p, v: p @ F.gelu(v), None),
        (lambda m, p, v: p @ v + v, None),
        (lambda m, p, v: (p @ v).relu(), None),
        (lambda m, p, v: p @ v.flip(-1), None),
        (lambda m, p, v: (p @ v).transpose(-2, -1), None),
    ],
    ids=["plain", "shuffled", "activation", "read twice", "relu", "unknown", "tokens"],
)  # fmt: skip
def test_a_value_that_only_its_projection_reads_is_a_site(
    join: Callable[..., torch.Tensor], expected: list[int] | None
) -> None:
    found = [site.rows.tolist() for site in find_value_sites(attention(join)).values()]
    assert found == ([] if expected is None else [expected])


def test_keys_are_centred_where_a_bias_of_their_own_makes_them() -> None:
    model = attention(lambda m, p, v: p @ F.gelu(v), "uniform")
    (keys,) = find_keys(model).values()
    assert model.placement.layers[keys.owner.name] == "k"
    assert keys.rows.tolist() == list(range(8))


@every_network
def test_centring_keys_keeps_their_codes_and_the_float_network(name: str) -> None:
    model, images = in_double(name, 8, "uniform"), images_for(name, 3).double()
    before = float_output(model, images)
    keys = find_keys(model)
    assert len(keys) == len(model.placement.attention)
    for call, operand in keys.items():
        quantizer = model.quantizer_at(call)
        x = float_values(model, images)[call.args[0]]
        quantizer.grid = IntegerGrid.unsigned(8)
        set_best_range(quantizer, x)
        codes = torch.clamp(torch.round(x / quantizer.scale) + quantizer.zero_point, 0, 255)
        summand = -float(quantizer.scale) * quantizer.offset
        operand.add(model, summand)
        quantizer.zero_point.fill_(128)
        moved = float_values(model, images)[call.args[0]]
        torch.testing.assert_close(moved, x + summand)
        assert torch.equal(quantizer.quantize(moved).double() + 128, codes)
    assert relative_change(model, images, before) < EXACT
