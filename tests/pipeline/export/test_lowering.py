from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from reptrt.calibrators.histogram.methods import MinMaxCalibrator
from reptrt.calibrators.quantized.find_attention import Softmax
from reptrt.calibrators.quantized.placement import Placement
from reptrt.calibrators.quantized.quantized_model import QuantizedModel
from reptrt.calibrators.quantized.quantizers import IntegerGrid, LogSqrt2Quantizer
from reptrt.models.graph import aten, trace, trace_inputs
from reptrt.models.inputs import NetworkInput, image_input
from reptrt.models.onnx_import.island_op import is_island
from reptrt.pipeline.export.lowering import dequantize_linear, lower, lower_float, quantize_linear
from tests.models.onnx_import.test_islands import network
from tests.tiny_networks import NETWORKS, calibrated, quantized, smooth_images

QUANTIZE = torch.ops.reptrt.quantize_linear.default
DEQUANTIZE = torch.ops.reptrt.dequantize_linear.default


def run(graph_module: fx.GraphModule, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
    with torch.no_grad():
        outputs = graph_module(images)
    return outputs if isinstance(outputs, tuple) else (outputs,)


def count(graph_module: fx.GraphModule, target: object) -> int:
    return sum(node.target is target for node in graph_module.graph.nodes)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(F.relu(self.conv(x)))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("bits", [(8, 8), (4, 6)])
def test_a_lowered_network_computes_what_the_fake_quantized_one_does(
    name: str, bits: tuple[int, int]
) -> None:
    model, images = calibrated(name, bits), smooth_images(4, seed=2)
    with torch.no_grad():
        expected = model(images)
    for a, b in zip(run(lower(model), images), expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["vit", "swin"])
@pytest.mark.parametrize("softmax", ["uniform", "log2", "fp8"])
@pytest.mark.parametrize("bits", [(8, 8), (4, 4)])
def test_quantized_attention_is_lowered_to_what_it_computes(
    name: str, softmax: Softmax, bits: tuple[int, int]
) -> None:
    model, images = calibrated(name, bits, softmax=softmax), smooth_images(4, seed=2)
    with torch.no_grad():
        assert torch.equal(run(lower(model), images)[0], model(images)[0])


@pytest.mark.parametrize("half", [False, True])
def test_probabilities_on_a_logarithmic_grid_by_hand(half: bool) -> None:
    quantizer = LogSqrt2Quantizer(IntegerGrid.unsigned(2))
    quantizer.set_amax(torch.tensor(0.5))
    graph = fx.Graph()
    graph.output((graph.call_module("log", (graph.placeholder("x"),)),))
    graph_module = fx.GraphModule({"log": quantizer}, graph)
    model = QuantizedModel(graph_module, Placement((), {}, {}), {"log": quantizer}, {}, {})
    x = torch.tensor([0.0, 1e-30, 0.11, 0.2, 0.24, 0.34, 0.45, 0.5, 0.9])
    codes = torch.tensor([4, 4, 4, 3, 2, 1, 0, 0, 0])  # 4 stands for 0
    assert torch.equal(quantizer.codes(x), codes.float())
    expected = torch.where(codes == 4, 0.0, 0.5 * 2 ** (-codes / 2))
    (actual,) = run(lower(model, half=half), x)
    torch.testing.assert_close(actual, expected, rtol=1e-3 if half else 1e-6, atol=0)


def test_lowering_leaves_the_model_unchanged() -> None:
    model, images = calibrated("plain"), smooth_images(4, seed=2)
    before, state = model(images)[0], model.graph_module.state_dict()
    lower(model, half=True)
    assert torch.equal(model(images)[0], before)
    assert all(torch.equal(state[k], v) for k, v in model.graph_module.state_dict().items())
    assert model.graph_module.state_dict()["4.weight"].dtype == torch.float32


def test_weights_become_their_integer_codes_and_others_stay_float() -> None:
    model = calibrated("detector")
    state = lower(model).state_dict()
    for layer, quantizer in model.weight_quantizers.items():
        codes = state[f"{layer}.weight_codes"]
        assert codes.dtype == torch.int8
        assert torch.equal(codes, quantizer.quantize(model.weight_of(layer)))
        assert torch.equal(state[f"{layer}.weight_scale"], quantizer.scale)
    assert state["up.upsample_transpose.weight"].dtype == torch.float32


def test_a_grid_below_8_bits_is_clipped_first_and_one_of_8_bits_is_not() -> None:
    assert count(lower(calibrated("plain", (8, 8))), aten.clamp.default) == 0
    narrow = lower(calibrated("plain", (8, 4)))
    clamps = [node.args[1:] for node in narrow.graph.nodes if node.target is aten.clamp.default]
    model = calibrated("plain", (8, 4))
    grids = [(q.grid, float(q.scale)) for q in model.activation_quantizers.values()]
    assert clamps == [(g.quant_min * s, g.quant_max * s) for g, s in grids]


def test_a_shared_weight_is_stored_once() -> None:
    model = quantized(trace(Twice(), (8, 8)))
    images = smooth_images(2, seed=0, size=8)
    MinMaxCalibrator().calibrate(model, [images])
    lowered = lower(model)
    state = lowered.state_dict()
    assert sum(tensor.dtype == torch.int8 and tensor.ndim == 4 for tensor in state.values()) == 1
    assert torch.equal(run(lowered, images)[0], model(images)[0])


@pytest.mark.parametrize("name", NETWORKS)
def test_half_precision_keeps_codes_scales_and_the_types_of_inputs_and_outputs(name: str) -> None:
    model = calibrated(name)
    full, half = lower(model).state_dict(), lower(model, half=True).state_dict()
    assert full.keys() == half.keys()
    for key, tensor in full.items():
        if tensor.dtype == torch.int8 or key.endswith("_scale"):
            assert half[key].dtype == tensor.dtype, key
            assert torch.equal(half[key], tensor), key
        elif tensor.is_floating_point():
            assert half[key].dtype == torch.float16, key


def test_weights_beyond_half_precisions_range_keep_their_codes() -> None:
    module = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False))
    nn.init.constant_(module[0].weight, 1e5)
    model = quantized(trace(module.eval(), (4, 4)))
    MinMaxCalibrator().calibrate(model, [torch.rand(1, 3, 4, 4)])
    assert torch.all(lower(model, half=True).state_dict()["0.weight_codes"] == 127)


def test_half_precision_computes_in_float16_and_keeps_float32_at_the_border() -> None:
    model, images = calibrated("detector"), smooth_images(4, seed=2)
    half = lower(model, half=True)
    dtypes: dict[str, set[torch.dtype]] = {}

    class Spy(fx.Interpreter):
        def run_node(self, node: fx.Node) -> object:
            value = super().run_node(node)
            if isinstance(value, torch.Tensor):
                dtypes.setdefault(str(node.target), set()).add(value.dtype)
            return value

    with torch.no_grad():
        outputs, reference = Spy(half).run(images), model(images)
    assert {output.dtype for output in outputs} == {torch.float32}
    for target in ("aten.conv2d.default", "aten.relu.default", "aten.conv_transpose2d.input"):
        assert dtypes[target] == {torch.float16}
    assert dtypes[str(QUANTIZE)] == {torch.int8}
    assert dtypes[str(DEQUANTIZE)] == {torch.float32}
    for output, expected in zip(outputs, reference, strict=True):
        noise = (output - expected).square().sum() / expected.square().sum()
        assert float(noise) < 10**-2.5  # of moved codes; half precision alone makes 10^-6


def test_the_operators_by_hand() -> None:
    zero = torch.zeros((), dtype=torch.int8)
    x = torch.tensor([0.25, 0.75, -100.0, 100.0])
    codes = quantize_linear(x, torch.tensor(0.5), zero)
    assert codes.tolist() == [0, 2, -128, 127]
    assert dequantize_linear(codes, torch.tensor(0.5), zero).tolist() == [0.0, 1.0, -64.0, 63.5]
    rows = torch.tensor([[1, 2], [3, 4]], dtype=torch.int8)
    per_channel = dequantize_linear(rows, torch.tensor([0.5, 2.0]), zero)
    assert per_channel.tolist() == [[0.5, 1.0], [6.0, 8.0]]


class NamedAsOurs(nn.Conv2d):
    """A convolution with a learned gain that is called as we call a scale."""

    def __init__(self) -> None:
        super().__init__(3, 4, 1)
        self.weight_scale = nn.Parameter(torch.rand(4, 1, 1) + 0.5)
        self.weight_codes = nn.Parameter(torch.rand(4, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(super().forward(x)).mul(self.weight_scale) + self.weight_codes


def test_a_parameter_that_is_called_as_ours_keeps_its_value() -> None:
    model, images = quantized(trace(NamedAsOurs(), (8, 8))), smooth_images(2, seed=0, size=8)
    MinMaxCalibrator().calibrate(model, [images])
    with torch.no_grad():
        assert torch.equal(run(lower(model), images)[0], model(images)[0])


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(
        self, images: torch.Tensor, mask: torch.Tensor, ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self.conv(images) * mask[:, None, None, None], ids + 1


def test_half_precision_leaves_masks_and_numbers_as_they_are() -> None:
    inputs = (
        image_input((4, 4)),
        NetworkInput("mask", "bool", ()),
        NetworkInput("ids", "int64", ()),
    )
    lowered = lower_float(trace_inputs(Masked().eval(), inputs))
    halved = [n.args[0] for n in lowered.graph.nodes if n.kwargs.get("dtype") == torch.float16]
    assert [node.name for node in halved if isinstance(node, fx.Node)] == ["images"]


class Stated(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.to(torch.float32).softmax(1).to(torch.float32)


def test_half_precision_is_legal_where_the_network_states_its_type() -> None:
    lowered = lower_float(trace(Stated().eval(), (4, 4)))
    assert count(lowered, aten._assert_tensor_metadata.default) == 0


def test_what_an_island_reads_in_fp32_is_clipped_to_what_fp16_holds(tmp_path: Path) -> None:
    imported = network(
        tmp_path,
        "d = Det(c) u = Unsqueeze(d, k) q = Mul(c, u) y = Conv(q, v)",
        "int64[2] k = {2, 3}",
    )
    lowered = lower_float(trace(imported.module, (8, 8)))
    (island,) = [node for node in lowered.graph.nodes if is_island(node)]
    (clipped,) = island.args[0]
    assert clipped.target is aten.clamp.default
    assert clipped.args[1:] == (-65504.0, 65504.0)
    assert clipped.args[0].kwargs == {"dtype": torch.float32}
