from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from reptrt.calibrators.quantized.find_attention import Softmax
from reptrt.calibrators.quantized.quantized_model import QuantizedModel
from reptrt.calibrators.quantized.quantizers import IntegerGrid, TensorQuantizer
from reptrt.calibrators.transformers.attention_channels import find_value_sites
from reptrt.calibrators.transformers.repq_vit import ReparameterizingPass
from reptrt.calibrators.transformers.scale_reparam import (
    ChannelSite,
    NormSite,
    find_norm_sites,
    has_norm_sites,
    reparameterize,
    unsigned_per_channel,
)
from reptrt.models.graph import trace
from tests.reconstructing import float_values
from tests.tiny_networks import quantized
from tests.tiny_transformers import TRANSFORMERS, float_output, images_for, transformer

EXACT = 1e-9  # of the largest output, in float64
every_network = pytest.mark.parametrize("name", TRANSFORMERS)
every_precision = pytest.mark.parametrize("bits", [8, 6, 4])


class Norms(nn.Module):
    """Linears behind LayerNorms that `join` connects; the images are a map of 8 tokens of 8."""

    def __init__(self, join: Callable[[Norms, torch.Tensor], object]) -> None:
        super().__init__()
        self.norm, self.other = nn.LayerNorm(8), nn.LayerNorm(8)
        self.plain = nn.LayerNorm(8, elementwise_affine=False)
        self.wide = nn.LayerNorm((8, 8))
        self.one, self.two = nn.Linear(8, 4), nn.Linear(8, 4, bias=False)
        self.join = join

    def forward(self, x: torch.Tensor) -> object:
        return self.join(self, x)


def returned_too(m: Norms, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    y = m.norm(x)
    return m.one(y), y


def two_readers(m: Norms, x: torch.Tensor) -> torch.Tensor:
    y = m.norm(x)
    return torch.maximum(m.one(y), m.two(y))  # a sum would be merged into one layer


def windows_of_two_readers(m: Norms, x: torch.Tensor) -> torch.Tensor:
    y = m.norm(x).reshape(-1, 4, 8)
    return m.one(y) + m.two(y)


def shared_linear(m: Norms, x: torch.Tensor) -> torch.Tensor:
    return m.one(m.norm(x)) + m.one(m.other(x))


def in_double(name: str, bits: int, softmax: Softmax = "float") -> QuantizedModel:
    model = transformer(name, (bits, bits), softmax)
    model.graph_module.double()
    return model


def relative_change(model: QuantizedModel, images: torch.Tensor, before: torch.Tensor) -> float:
    return float((float_output(model, images) - before).abs().max() / before.abs().max())


def fitted(model: QuantizedModel, site: ChannelSite, x: torch.Tensor) -> TensorQuantizer:
    """The per-channel quantizer that RepQ-ViT gives the tensor `x` of `site`."""
    num_bits = model.quantizer_at(site.call).grid.num_bits
    channels = unsigned_per_channel(num_bits, site).double()
    ReparameterizingPass(model).fit_channels(site, channels, x)
    return channels


@pytest.mark.parametrize("softmax", ["float", "uniform"])
@every_precision
@every_network
def test_the_float_network_stays_itself(name: str, bits: int, softmax: Softmax) -> None:
    model, images = in_double(name, bits, softmax), images_for(name, 3).double()
    before = float_output(model, images)
    state = {key: value.clone() for key, value in model.graph_module.named_parameters()}
    notes = ReparameterizingPass(model).run([images])
    assert notes["Reparameterized LayerNorms"] == str(len(find_norm_sites(model)))
    attentions = 0 if (bits, softmax) == (8, "float") else len(find_value_sites(model))
    assert notes["Reparameterized attentions"] == str(attentions)
    assert len(find_norm_sites(model)) == 2 * len(find_value_sites(model)) + ("swin" in name)
    assert relative_change(model, images, before) < EXACT
    changed = [k for k, v in model.graph_module.named_parameters() if not torch.equal(v, state[k])]
    assert len(changed) >= 3 * len(find_norm_sites(model))  # gain, shift and weight


@every_precision
@every_network
def test_per_channel_codes_before_are_the_per_tensor_codes_behind(name: str, bits: int) -> None:
    model, images = in_double(name, bits), images_for(name, 3).double()
    sites: dict[fx.Node, ChannelSite] = {**find_norm_sites(model), **find_value_sites(model)}
    for call, site in sites.items():
        x = float_values(model, images)[call.args[0]]
        channels = fitted(model, site, x)
        codes = torch.round(x / channels.scale) + channels.zero_point
        codes = torch.clamp(codes, 0, 2**bits - 1)
        factor, summand = reparameterize(model, site, channels)
        moved = float_values(model, images)[call.args[0]]
        torch.testing.assert_close(moved, x * factor + summand)
        quantizer = model.quantizer_at(call)
        assert quantizer.scale.ndim == 0
        travelling = quantizer.quantize(moved).double()
        assert torch.equal(travelling + quantizer.offset + quantizer.zero_point, codes)
        assert len(codes.unique()) <= 2**bits


@every_precision
@every_network
def test_the_shared_zero_point_is_a_code_and_the_middle_one_at_8_bits(name: str, bits: int) -> None:
    model, images = transformer(name, (bits, bits)), images_for(name, 3)
    ReparameterizingPass(model).run([images])
    for site in find_norm_sites(model).values():
        quantizer = model.quantizer_at(site.call)
        assert quantizer.grid == IntegerGrid.unsigned(bits)
        assert float(quantizer.zero_point) in range(2**bits)
        assert quantizer.offset == 0
        if bits == 8:
            assert quantizer.zero_point == 128
        low, high = (int(multiple) for multiple in quantizer.multiples)
        assert -128 <= low < high <= 127


def test_the_algebra_by_hand() -> None:
    model = quantized(trace(Norms(lambda m, x: m.one(m.norm(x))).eval(), (8, 8)), (4, 4))
    ((call, site),) = find_norm_sites(model).items()
    parameters = dict(model.graph_module.named_parameters())
    parameters["norm.weight"].data[:] = 2.0
    parameters["norm.bias"].data[:] = 3.0
    parameters["one.weight"].data[:] = 1.0
    parameters["one.bias"].data[:] = 100.0
    channels = unsigned_per_channel(4, site)
    channels.scale.copy_(torch.tensor([1.0, 3.0] * 4))
    channels.zero_point.copy_(torch.tensor([4.0, 9.0] * 4))  # their mean is 6.5, which becomes 6
    factor, summand = reparameterize(model, site, channels)
    quantizer = model.quantizer_at(call)
    assert (float(quantizer.scale), float(quantizer.zero_point)) == (2.0, 6.0)
    # r1 = 1/2, 3/2; s r2 = -2, 9
    assert parameters["norm.weight"][:2].tolist() == pytest.approx([4.0, 4 / 3])
    assert parameters["norm.bias"][:2].tolist() == pytest.approx([2.0, 8.0])
    assert parameters["one.weight"][0, :2].tolist() == pytest.approx([0.5, 1.5])
    assert float(parameters["one.bias"].detach()[0]) == pytest.approx(100 - 4 * (-2 + 9))
    assert factor[:2].tolist() == pytest.approx([2.0, 2 / 3])
    assert summand[:2].tolist() == pytest.approx([-4.0, 6.0])


@pytest.mark.parametrize(
    "join",
    [
        lambda m, x: m.one(m.norm(x)),
        lambda m, x: m.two(m.norm(x)),
        lambda m, x: m.one(m.norm(x).flatten(1, 2)),
        lambda m, x: m.one(m.norm(x).transpose(1, 2)),
        lambda m, x: m.one(torch.roll(m.norm(x), 1, 2)),
        lambda m, x: m.one(F.pad(m.norm(x), (0, 0, 0, 3))),
        two_readers,
    ],
    ids=["one", "two", "flatten", "transpose", "roll", "pad", "both"],
)
def test_a_norm_that_linears_alone_read_is_a_site(join: Callable[..., object]) -> None:
    model = quantized(trace(Norms(join).eval(), (8, 8)))
    (site,) = find_norm_sites(model).values()
    assert site.norm.target is torch.ops.aten.layer_norm.default
    assert {reader.target for reader in site.readers} == {torch.ops.aten.linear.default}
    assert len(site.readers) == (2 if join is two_readers else 1)
    assert site.keeps_zero == any(n.target is torch.ops.aten.pad.default for n in walk_back(site))
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    before = float_output(model, images)
    model.graph_module.double()
    ReparameterizingPass(model).run([images.double()])
    assert relative_change(model, images, before) < EXACT


def walk_back(site: NormSite) -> list[fx.Node]:
    """What lies between a site's quantizer and its LayerNorm."""
    found, node = [], site.call.args[0]
    while isinstance(node, fx.Node) and node is not site.norm:
        found.append(node)
        node = node.args[0]
    return found


@pytest.mark.parametrize(
    "join",
    [
        lambda m, x: m.one(m.plain(x)),
        lambda m, x: m.one(m.wide(x)),
        lambda m, x: m.one(m.norm(x).transpose(2, 3)),
        lambda m, x: m.one(torch.roll(m.norm(x), 1, 3)),
        lambda m, x: m.one(F.relu(m.norm(x))),
        lambda m, x: m.one(m.norm(x)[:, 0]),
        lambda m, x: m.one(m.norm(m.norm(x))),
        lambda m, x: m.one(m.norm(x) * 2),
        lambda m, x: m.one(m.norm(x)) + F.linear(x, m.one.weight),
        *(returned_too, shared_linear),
    ],
    ids=[
        *("no gain", "two axes", "transpose", "roll", "relu", "one token", "gain read twice"),
        *("scaled", "weight read twice", "output", "linear read twice"),
    ],
)
def test_any_other_norm_is_not(join: Callable[..., object]) -> None:
    assert find_norm_sites(quantized(trace(Norms(join).eval(), (8, 8)))) == {}


@pytest.mark.parametrize(
    ("join", "expected"),
    [
        (lambda m, x: m.one(m.norm(x)), True),
        (lambda m, x: windows_of_two_readers(m, x), True),
        (lambda m, x: m.one(F.pad(m.norm(x), (0, 0, 0, 3))), True),
        (lambda m, x: m.one(F.pad(m.norm(x), (0, 0, 0, 3), value=1.0)), False),
        (lambda m, x: m.one(m.norm(x).transpose(2, 3)), False),
        (lambda m, x: m.one(m.norm(x)[:, 0]), False),
        (lambda m, x: m.norm(m.one(x.transpose(2, 3))[..., :1].expand(-1, -1, -1, 8)), False),
        (lambda m, x: m.one(x), False),
    ],
    ids=["norm", "windows", "zeros", "ones", "other axis", "one token", "behind", "no norm"],
)
def test_a_float_graph_tells_whether_there_is_something_to_fold(
    join: Callable[..., object], expected: bool
) -> None:
    assert has_norm_sites(trace(Norms(join).eval(), (8, 8)).graph) is expected


def test_a_float_linear_behind_a_norm_makes_no_site() -> None:
    graph_module = trace(Norms(two_readers).eval(), (8, 8))
    assert find_norm_sites(quantized(graph_module, keep_float=["two"])) == {}


@every_network
def test_all_norms_of_the_blocks_are_sites_and_the_last_is_not(name: str) -> None:
    model = transformer(name)
    weights = [str(s.norm.args[2].target) for s in find_norm_sites(model).values()]
    if name.startswith("vit"):
        assert weights == [f"blocks.{i}.norm{j}.weight" for i in (0, 1) for j in (1, 2)]
    else:
        assert weights == [
            *(f"layers.0.blocks.{i}.norm{j}.weight" for i in (0, 1) for j in (1, 2)),
            "layers.1.downsample.norm.weight",
            *(f"layers.1.blocks.{i}.norm{j}.weight" for i in (0, 1) for j in (1, 2)),
        ]
    padded = [weight for weight, s in zip(weights, find_norm_sites(model).values(), strict=True)
              if s.keeps_zero]  # fmt: skip
    assert padded == [w for w in weights if name == "swin-padded" and "norm1" in w]


def test_channels_that_are_padded_share_the_zero_point() -> None:
    model, images = in_double("swin-padded", 6), images_for("swin-padded", 3).double()
    sites = [site for site in find_norm_sites(model).values() if site.keeps_zero]
    values = float_values(model, images)
    for site in sites:
        channels = fitted(model, site, values[site.call.args[0]])
        assert channels.zero_point.unique().tolist() == [32]
        assert channels.scale.max() > 5 * channels.scale.min()
        _, summand = reparameterize(model, site, channels)
        assert not summand.any()


def test_a_patch_merging_gets_the_bias_that_it_lacks() -> None:
    model, images = transformer("swin"), images_for("swin", 3)
    bias = model.graph_module.get_parameter("layers.1.downsample.reduction.bias")
    assert bias.shape == (48,)
    assert not bias.any()
    ReparameterizingPass(model).run([images])
    assert bias.all()


@pytest.mark.parametrize("bits", [8, 4])
def test_channels_that_never_change_do_no_harm(bits: int) -> None:
    model, images = in_double("vit", bits), images_for("vit", 3).double()
    gain = model.graph_module.get_parameter("blocks.0.norm1.weight")
    shift = model.graph_module.get_parameter("blocks.0.norm1.bias")
    gain.data[[3, 5]] = 0
    shift.data[3], shift.data[5] = 0, 0.7
    before = float_output(model, images)
    ReparameterizingPass(model).run([images])
    assert relative_change(model, images, before) < EXACT
    first = next(iter(find_norm_sites(model).values()))
    quantizer = model.quantizer_at(first.call)
    assert 0 < quantizer.scale < 10
    assert torch.isfinite(model(images)[0]).all()
