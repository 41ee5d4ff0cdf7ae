"""Each rule of `reptrt.calibrators.quantized.placement` on the smallest network that shows it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from reptrt.calibrators.quantized.find_attention import AttentionSite, Softmax
from reptrt.calibrators.quantized.placement import Placement, place_quantizers
from reptrt.models.expand_attention import expand_attention
from reptrt.models.graph import trace
from tests.placing import Network, conv, edges, place, place_detector
from tests.tiny_networks import traced


def test_every_convolution_and_linear_reads_a_quantized_input_and_weight() -> None:
    placement = place(
        lambda m, x: m.fc(F.silu(m.b(F.relu(m.a(x)))).mean((2, 3))),
        a=conv(),
        b=conv(),
        fc=nn.Linear(3, 2),
    )
    assert edges(placement) == [{("x", "a")}, {("relu", "b")}, {("mean", "fc")}]
    assert list(placement.layers.values()) == ["a", "b", "fc"]
    assert placement.float_layers == {}


def test_one_dimensional_and_three_dimensional_convolutions_are_quantized() -> None:
    placement = place(
        lambda m, x: m.b(F.relu(m.a(x.flatten(2))).reshape(-1, 3, 2, 4, 8)),
        a=nn.Conv1d(3, 3, 3, padding=1),
        b=nn.Conv3d(3, 3, 1),
    )
    assert list(placement.layers.values()) == ["a", "b"]


def test_an_activation_before_a_max_pool_is_quantized_before_it() -> None:
    placement = place(lambda m, x: m.b(F.max_pool2d(F.relu(m.a(x)), 2)), a=conv(), b=conv())
    assert edges(placement) == [{("x", "a")}, {("relu", "max_pool2d")}]


def test_an_average_pool_is_float_and_its_output_is_quantized() -> None:
    placement = place(lambda m, x: m.b(F.avg_pool2d(F.relu(m.a(x)), 2)), a=conv(), b=conv())
    assert edges(placement) == [{("x", "a")}, {("avg_pool2d", "b")}]


def test_producers_of_one_concat_share_a_quantizer() -> None:
    placement = place(
        lambda m, x: m.c(torch.cat([F.relu(m.a(x)), F.silu(m.b(x))], 1)),
        a=conv(),
        b=conv(),
        c=conv(6),
    )
    assert edges(placement) == [{("x", "a"), ("x", "b")}, {("relu", "cat"), ("silu", "cat")}]
    assert placement.points[1].name == "relu"
    assert placement.points[1].tensors == ("relu", "silu")


def test_a_concat_shares_its_scale_through_max_pool_and_nearest_upsampling() -> None:
    placement = place(
        lambda m, x: m.c(
            torch.cat(
                [
                    F.interpolate(F.max_pool2d(F.relu(m.a(x)), 2), scale_factor=2, mode="nearest"),
                    F.silu(m.b(x)),
                ],
                1,
            )
        ),
        a=conv(),
        b=conv(),
        c=conv(6),
    )
    assert edges(placement)[1] == {("upsample_nearest2d", "cat"), ("silu", "cat")}


def test_a_nearest_upsampling_is_quantized_behind_on_the_grid_of_what_it_reads() -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(m.a(x))
        return m.b(F.interpolate(y, scale_factor=2, mode="nearest")) + m.c(y).mean()

    placement = place(forward, a=conv(), b=conv(), c=conv())
    assert edges(placement) == [{("x", "a")}, {("upsample_nearest2d", "b"), ("relu", "c")}]


def test_a_bilinear_upsampling_makes_new_values_and_ends_a_group() -> None:
    placement = place(
        lambda m, x: m.b(F.interpolate(F.relu(m.a(x)), scale_factor=2, mode="bilinear")),
        a=conv(),
        b=conv(),
    )
    assert edges(placement) == [{("x", "a")}, {("upsample_bilinear2d", "b")}]


def test_a_reader_before_and_one_behind_a_reshape_share_a_quantizer() -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(m.a(x))
        return m.fc(y.flatten(1)) + m.b(y).flatten(1)

    placement = place(forward, a=conv(), b=conv(), fc=nn.Linear(192, 192))
    assert [len(point.edges) for point in placement.points] == [1, 2]
    assert placement.points[1].tensors[0] == "relu"


def test_a_concat_behind_a_reshape_shares_its_scale_with_another_reader_of_its_source() -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        y, z = F.relu(m.a(x)), F.silu(m.b(x))
        return m.fc(torch.cat([y.flatten(2), z.flatten(2)], 1)).flatten(1) + m.c(y).flatten(1)

    placement = place(forward, a=conv(), b=conv(), c=conv(3, 6), fc=nn.Linear(64, 64))
    assert [len(point.edges) for point in placement.points] == [2, 3]
    assert "relu" in placement.points[1].tensors


def test_split_parts_that_meet_in_a_concat_share_a_quantizer() -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        left, right = F.relu(m.a(x)).chunk(2, 1)  # C2f
        return m.c(torch.cat([left, right, F.relu(m.b(right))], 1))

    placement = place(forward, a=conv(3, 4), b=conv(2, 2), c=conv(6))
    assert len(placement.points) == 2
    assert {consumer for _, consumer in edges(placement)[1]} == {"b", "cat"}


def test_two_concats_with_a_common_source_are_one_group() -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        y, z, w = F.relu(m.a(x)), F.silu(m.b(x)), F.gelu(m.c(x))
        return m.d(torch.cat([y, z], 1)) + m.e(torch.cat([z, w], 1))

    layers = {name: conv() for name in "abc"}
    placement = place(forward, **layers, d=conv(6), e=conv(6))
    assert [point.tensors for point in placement.points] == [("x",), ("relu", "silu", "gelu")]


def test_two_layers_that_read_one_tensor_share_its_quantizer() -> None:
    placement = place(lambda m, x: torch.maximum(m.a(x), m.b(x)), a=conv(), b=conv())
    assert edges(placement) == [{("x", "a"), ("x", "b")}]


def test_squeeze_and_excitation_stays_float_with_a_reason() -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(m.a(x))
        return m.b(y * torch.sigmoid(m.expand(F.relu(m.squeeze(y.mean((2, 3), keepdim=True))))))

    placement = place(forward, a=conv(), squeeze=conv(), expand=conv(), b=conv())
    assert list(placement.layers.values()) == ["a", "b"]
    assert list(placement.float_layers) == ["squeeze", "expand"]
    assert all("1x1 map" in reason for reason in placement.float_layers.values())
    assert edges(placement) == [{("x", "a")}, {("mul", "b")}]


def test_a_transposed_convolution_stays_float_with_a_reason() -> None:
    placement = place(
        lambda m, x: m.b(m.up(F.relu(m.a(x)))),
        a=conv(),
        up=nn.ConvTranspose2d(3, 3, 2, 2),
        b=conv(),
    )
    assert list(placement.float_layers) == ["up"]
    assert "transposed" in placement.float_layers["up"]
    assert len(placement.points) == 2
    assert [consumer for group in edges(placement) for _, consumer in group] == ["a", "b"]


def test_layers_that_the_user_names_stay_float() -> None:
    layers = {"stem": conv(), "head_a": conv(), "head_b": conv()}
    placement = place(
        lambda m, x: m.head_a(F.relu(m.stem(x))) + m.head_b(x), "head_*", "none", **layers
    )
    assert list(placement.layers.values()) == ["stem"]
    assert placement.float_layers == dict.fromkeys(
        ("head_a", "head_b"), "the recipe keeps 'head_*' float"
    )


def test_a_weight_that_is_computed_at_run_time_stays_float() -> None:
    placement = place(lambda m, x: F.conv2d(x, m.a.weight * x.mean()) + m.b(x), a=conv(), b=conv())
    assert list(placement.layers.values()) == ["b"]
    assert list(placement.float_layers.values()) == ["its weight is computed at run time"]


def test_a_weight_that_two_layers_share_is_quantized_at_both() -> None:
    placement = place(lambda m, x: m.a(F.relu(m.a(x))), a=conv())
    assert list(placement.layers.values()) == ["a", "a"]
    assert edges(placement) == [{("x", "a")}, {("relu", "a")}]


@pytest.mark.parametrize("name", ["vit", "swin"])
def test_a_transformer_quantizes_its_linears_and_nothing_else(name: str) -> None:
    graph_module = traced(name)
    placement = place_quantizers(graph_module.graph)
    consumers = {consumer for point in placement.points for _, consumer in point.edges}
    assert consumers == set(placement.layers)
    assert placement.float_layers == {}
    kept = {"layer_norm", "softmax", "scaled_dot_product_attention", "matmul", "gelu"}
    present = {
        str(n.target).split(".")[1]
        for n in graph_module.graph.nodes
        if n.op != "get_attr" and "aten" in str(n.target)
    }
    assert {"layer_norm", "gelu"} <= present & kept
    assert len(placement.points) == len(placement.layers)


def attention_of(name: str, *keep_float: str, softmax: Softmax = "uniform") -> Placement:
    graph_module = traced(name)
    expand_attention(graph_module)
    return place_quantizers(graph_module.graph, keep_float, softmax=softmax)


def test_on_request_every_operand_of_an_attention_has_a_scale_of_its_own() -> None:
    placement = attention_of("vit")
    assert placement.attention == (
        AttentionSite("getitem", "transpose_2", "softmax", "getitem_2", "matmul", "matmul_1"),
    )
    points = {point.name: point.edges for point in placement.points}
    assert points["getitem"] == (("getitem", "matmul"),)
    assert points["transpose_2"] == (("transpose_2", "matmul"),)
    assert points["softmax"] == (("softmax", "matmul_1"),)
    assert points["getitem_2"] == (("getitem_2", "matmul_1"),)


def test_a_query_is_quantized_as_its_product_reads_it() -> None:
    sites = attention_of("swin").attention
    assert [site.query for site in sites] == ["mul_1", "mul_2"]  # scaled
    assert [site.key for site in sites] == ["transpose", "transpose_2"]
    assert [site.probabilities for site in sites] == ["softmax", "softmax_1"]


@pytest.mark.parametrize("name", ["vit", "swin"])
def test_quantizing_attention_changes_no_other_quantizer(name: str) -> None:
    plain, full = attention_of(name, softmax="float"), attention_of(name, softmax="log2")
    assert plain.attention == ()
    assert full.softmax == "log2"
    assert set(plain.points) < set(full.points)
    assert len(full.points) == len(plain.points) + 4 * len(full.attention)
    assert (full.layers, full.float_layers) == (plain.layers, plain.float_layers)


def test_an_attention_is_quantized_whatever_layers_stay_float() -> None:
    placement = attention_of("vit", "*")
    assert placement.layers == {}
    assert len(placement.attention) == 1
    assert len(placement.points) == 4


def test_an_add_does_not_read_what_is_quantized_for_an_attention() -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        y = m.fc(x.flatten(2))
        return (y @ y.transpose(1, 2)).softmax(-1) @ y + y

    graph = trace(Network(forward, fc=nn.Linear(64, 8)).eval(), (8, 8)).graph
    placement = place_quantizers(graph, softmax="uniform")
    assert "add" not in {consumer for point in placement.points for _, consumer in point.edges}
    (site,) = placement.attention
    assert (site.query, site.value) == ("linear", "linear")  # one tensor, one scale


def test_prediction_layers_of_every_branch_stay_float_unless_asked_for() -> None:
    layers = {"a": conv(), "scores": conv(), "boxes": conv(), "up": nn.ConvTranspose2d(3, 3, 2)}

    def forward(m: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        feature = F.silu(m.a(x))
        return m.scores(feature).sigmoid(), m.boxes(feature).flatten(2), m.up(feature)

    kept = place_detector(forward, **layers)
    assert list(kept.layers.values()) == ["a"]
    assert list(kept.float_layers) == ["scores", "boxes", "up"]
    assert "`quantize_head=True`" in kept.float_layers["scores"]
    assert list(place(forward, **layers).layers.values()) == ["a", "scores", "boxes"]


def test_the_integral_of_a_distribution_is_float_and_what_it_sums_is_the_prediction() -> None:
    layers = {"a": conv(), "boxes": conv(3, 16), "integral": conv(4, 1)}

    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        distances = m.boxes(m.a(x).relu()).reshape(-1, 4, 4, 64).permute(0, 2, 1, 3)
        return m.integral(distances.softmax(1))

    assert list(place(forward, **layers).layers.values()) == ["a", "boxes"]
    kept = place_detector(forward, **layers)
    assert list(kept.layers.values()) == ["a"]
    assert "distribution" in kept.float_layers["integral"]
