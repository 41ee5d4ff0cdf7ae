"""Factors of channels: the float function stays, folds cost nothing, and the codes are those of an engine."""

from __future__ import annotations

import copy
from pathlib import Path

import onnx
import pytest
import torch
from torch import fx, nn

from reptrt.calibrators.channels.rewrite import scale_channels, scaled_rows
from reptrt.calibrators.histogram.methods import MinMaxCalibrator
from reptrt.calibrators.quantized.biases import round_biases
from reptrt.calibrators.quantized.channel_affine import ChannelAffine
from reptrt.calibrators.quantized.quantized_model import QuantizedModel
from reptrt.models.graph import trace
from reptrt.pipeline.export.export import export_float, export_qdq
from reptrt.pipeline.validation.compare_outputs import compare_layers
from tests.engines.lint.rtx import kernels_of, needs_rtx
from tests.exported import card
from tests.onnx_codes import agreement, forced_codes, largest_step, torch_codes
from tests.placing import Forward, Network, conv
from tests.tiny_networks import SIZE, quantized, randomize, smooth_images

aten = torch.ops.aten
IMAGES = smooth_images(4, seed=3)


def model_of(forward: Forward, **layers: nn.Module) -> QuantizedModel:
    return quantized(trace(randomize(Network(forward, **layers)), (SIZE, SIZE)))


def everything(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Every kind of reader and of producer."""
    x = net.stem(x).relu()
    skip = nn.functional.hardswish(net.first(x))
    left = nn.functional.leaky_relu(net.left(skip), 0.1)
    wide = torch.cat([left, nn.functional.max_pool2d(skip, 3, 1, 1)], dim=1)
    x = nn.functional.silu(net.grouped(wide)) + skip
    up = nn.functional.interpolate(net.down(x), scale_factor=2.0, mode="nearest")
    return net.linear(nn.functional.hardswish(net.depthwise(up)).mean((2, 3)))


def everything_graph() -> fx.GraphModule:
    network = Network(
        everything,
        stem=conv(3, 8, 3),
        first=conv(8, 8),
        left=conv(8, 8, 3),
        grouped=nn.Conv2d(16, 8, 3, padding=1, groups=2),
        down=conv(8, 8, 3, stride=2),
        depthwise=nn.Conv2d(8, 8, 3, padding=1, groups=8),
        linear=nn.Linear(8, 10),
    )
    return trace(randomize(network), (SIZE, SIZE))


def everything_model() -> QuantizedModel:
    return quantized(everything_graph())


def some_factors(model: QuantizedModel) -> dict[str, torch.Tensor]:
    """A factor in 0.01..1 for every channel that is quantized."""
    generator = torch.Generator().manual_seed(7)
    values = {node.name: node.meta.get("val") for node in model.graph_module.graph.nodes}
    return {
        tensor: 10 ** (-2 * torch.rand(values[tensor].shape[1], generator=generator))
        for point in model.placement.points
        for tensor in point.tensors
    }


def products(model: QuantizedModel) -> list[fx.Node]:
    """Multiplications by factors."""
    return [
        node
        for node in model.graph_module.graph.nodes
        if node.target is aten.mul.Tensor and "channel_factors" in str(node.args[1].target)
    ]


def test_the_float_function_stays() -> None:
    model = everything_model()
    model.graph_module.double()
    scaled = copy.deepcopy(model)
    scale_channels(scaled, some_factors(scaled))
    assert not torch.equal(scaled.weight_of("grouped"), model.weight_of("grouped"))
    with model.float_mode(), scaled.float_mode():
        (expected,), (found,) = model(IMAGES.double()), scaled(IMAGES.double())
    error = (found - expected).detach().abs().max() / expected.detach().abs().max()
    assert float(error) < 1e-9


def test_it_stays_where_a_float_layer_reads_the_quantized_concat() -> None:
    def forward(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        wide = torch.cat([net.left(x).relu(), nn.functional.silu(net.right(x))], dim=1)
        return net.one(wide) + net.two(wide)

    layers = {"left": conv(), "right": conv(), "one": conv(6, 4), "two": conv(6, 4)}
    graph_module = trace(randomize(Network(forward, **layers)), (SIZE, SIZE))
    model = quantized(graph_module, keep_float=["two"])
    with model.float_mode():
        (expected,) = model(IMAGES)
        scale_channels(model, some_factors(model))
        torch.testing.assert_close(model(IMAGES)[0], expected)


def test_quantizers_read_divided_channels_and_weights_hold_the_factors() -> None:
    model = model_of(lambda net, x: net.b(nn.functional.silu(net.a(x))), a=conv(3, 2), b=conv(2, 4))
    before = model.weight_of("b").clone()
    scale_channels(model, {"silu": torch.tensor([0.25, 1.0])})
    torch.testing.assert_close(
        model.weight_of("b"), before * torch.tensor([0.25, 1]).view(1, 2, 1, 1)
    )
    (product,) = products(model)
    factor = model.graph_module.get_parameter(str(product.args[1].target))  # type: ignore[union-attr]
    assert factor.flatten().tolist() == [4.0, 1.0]
    assert product.args[0].name == "silu"  # type: ignore[union-attr]


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "nothing"])
def test_behind_them_the_rows_of_the_layer_in_front_are_divided(activation: str) -> None:
    def forward(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        x = net.a(x)
        return net.b(x if activation == "nothing" else getattr(nn.functional, activation)(x))

    model = model_of(forward, a=conv(3, 2), b=conv(2, 4))
    model.branch_affines["a"] = ChannelAffine(torch.tensor([3.0, -5.0]), torch.tensor([1.0, 2.0]))
    point = model.placement.points[1].name
    weight, bias = model.weight_of("a").clone(), model.graph_module.get_parameter("a.bias").clone()
    scale_channels(model, {point: torch.tensor([0.5, 0.25])})
    assert products(model) == []
    factor = torch.tensor([2.0, 4.0])
    torch.testing.assert_close(model.weight_of("a"), weight * factor.view(2, 1, 1, 1))
    torch.testing.assert_close(model.graph_module.get_parameter("a.bias"), bias * factor)
    affine = model.branch_affines["a"]
    assert (affine.gain.tolist(), affine.shift.tolist()) == ([6.0, -20.0], [2.0, 8.0])


def test_a_tensor_that_is_read_in_float_too_keeps_its_values() -> None:
    def forward(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        x = net.a(x).relu()
        return net.b(x) * x.mean((2, 3), keepdim=True)

    model = model_of(forward, a=conv(3, 2), b=conv(2, 2))
    before = model.weight_of("a").clone()
    scale_channels(model, {"relu": torch.tensor([0.5, 0.25])})
    assert len(products(model)) == 1
    assert torch.equal(model.weight_of("a"), before)


def test_the_addition_of_a_skip_reads_a_multiplication() -> None:
    def forward(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        x = net.a(x).relu()
        return net.c(net.b(x).sigmoid() + x)

    model = model_of(forward, a=conv(3, 2), b=conv(2, 2), c=conv(2, 4))
    scale_channels(model, {"relu": torch.tensor([0.5, 0.25])})
    (product,) = products(model)
    assert product.args[0].op == "call_module"  # type: ignore[union-attr]
    assert [reader.target for reader in product.users] == [aten.add.Tensor]


def test_rows_of_a_depthwise_layer_take_the_factors_and_lose_no_code() -> None:
    layers = {"a": conv(3, 4), "b": nn.Conv2d(4, 4, 3, groups=4)}
    plain = model_of(lambda net, x: net.b(net.a(x).relu()), **layers)
    scaled = copy.deepcopy(plain)
    scale_channels(scaled, {"relu": torch.tensor([0.5, 0.25, 0.125, 1.0])})
    codes = []
    for model in (plain, scaled):
        quantizer = model.weight_quantizers["b"]
        quantizer.set_amax(model.weight_of("b").abs().flatten(1).amax(1))
        codes.append(quantizer.quantize(model.weight_of("b")))
    assert torch.equal(*codes)


def test_a_weight_that_two_layers_share_is_left_alone() -> None:
    def forward(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return net.b(net.b(net.a(x).relu()).relu())

    model = model_of(forward, a=conv(3, 2), b=conv(2, 2))
    before = {name: model.weight_of(name).clone() for name in "ab"}
    scale_channels(model, {"relu": torch.tensor([0.5, 0.25]), "relu_1": torch.tensor([0.5, 0.25])})
    assert all(torch.equal(model.weight_of(name), before[name]) for name in "ab")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[QuantizedModel, onnx.ModelProto]:
    """Every kind of reader, scaled, calibrated with min-max and written."""
    model = everything_model()
    scale_channels(model, some_factors(model))
    MinMaxCalibrator().calibrate(model, [smooth_images(32, seed=1)])
    round_biases(model)
    path: Path = tmp_path_factory.mktemp("scaled") / "scaled.onnx"
    export_qdq(model, path, card("plain"))
    return model, onnx.load(path)


def test_onnx_runtime_computes_the_same_codes(
    exported: tuple[QuantizedModel, onnx.ModelProto],
) -> None:
    model, proto = exported
    codes, (outputs,) = torch_codes(model, proto, IMAGES)
    computed, (actual,) = forced_codes(proto, IMAGES, codes, optimized=False)
    assert agreement(computed, codes) > 0.999
    assert largest_step(computed, codes) <= 1
    torch.testing.assert_close(torch.from_numpy(actual), torch.from_numpy(outputs))


@needs_rtx
def test_tensorrt_rtx_makes_no_kernel_of_a_multiplication(tmp_path: Path) -> None:
    def forward(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.hardswish(net.a(x))
        return net.c(nn.functional.silu(net.b(x)) + x).mean((2, 3))

    kernels = []
    for is_scaled in (False, True):
        model = model_of(forward, a=conv(3, 32), b=conv(32, 32, 3), c=conv(32, 10))
        if is_scaled:
            scale_channels(model, some_factors(model))
            assert len(products(model)) > 2
        MinMaxCalibrator().calibrate(model, [IMAGES])
        path = tmp_path / f"{is_scaled}.onnx"
        export_qdq(model, path, card("plain"), 1, precision="fp16")
        kernels.append(kernels_of(path))
    assert len(kernels[1]) == len(kernels[0])


def test_layers_whose_rows_took_factors_are_compared_in_the_networks_units(tmp_path: Path) -> None:
    graph = everything_graph()
    export_float(graph, tmp_path / "float.onnx", card("plain"))
    model = quantized(copy.deepcopy(graph), keep_float=["left"])
    factors = some_factors(model)
    scale_channels(model, factors)
    rows = {name: one.numpy() for name, one in scaled_rows(model, factors).items()}
    assert rows.keys() == {"stem", "left", "down"}
    MinMaxCalibrator().calibrate(model, [IMAGES])
    export_qdq(model, tmp_path / "qdq.onnx", card("plain"))
    files, feeds = (tmp_path / "float.onnx", tmp_path / "qdq.onnx"), [{"images": IMAGES.numpy()}]
    own = {one.layer: one.snr_db for one in compare_layers(*files, feeds, rows=rows)}
    other = {one.layer: one.snr_db for one in compare_layers(*files, feeds)}
    assert min(own[name] for name in rows) > 10  # factors of random size cost some
    assert max(other[name] for name in rows) < 5
    assert all(own[name] == other[name] for name in own.keys() - rows.keys())
