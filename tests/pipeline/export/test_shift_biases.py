"""All 256 codes behind a ReLU: the same network in PyTorch, lowered, in ONNX and in an engine."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from reptrt.calibrators.histogram.methods import MinMaxCalibrator
from reptrt.calibrators.quantized.biases import round_biases
from reptrt.calibrators.quantized.half_range import shiftable_points
from reptrt.calibrators.quantized.quantized_model import QuantizedModel
from reptrt.calibrators.quantized.quantizers import IntegerGrid
from reptrt.engines.build.builder import BuildOptions, build_engine
from reptrt.engines.inspection.fusion import fusion_report, parse_kernels
from reptrt.engines.surgery import clean
from reptrt.models.card import ModelCard
from reptrt.models.graph import aten, get_tensor, trace
from reptrt.models.spec import Preprocess
from reptrt.pipeline.export.export import Precision, export_qdq
from reptrt.pipeline.export.lowering import lower
from reptrt.pipeline.export.shift_biases import shift_biases
from tests.onnx_codes import agreement, forced_codes, largest_step, onnx_codes, snr_db, torch_codes
from tests.tiny_networks import SIZE, quantized, smooth_images, traced

PREPROCESS = Preprocess((SIZE, SIZE), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
CARD = ModelCard("toy", "classification", PREPROCESS, 10, None, ("logits",))


class Twice(nn.Module):
    """One layer before and behind the ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(F.relu(self.conv(x)))


def chain() -> nn.Module:
    """The second convolution reads one shifted tensor and makes another; the third has no bias."""
    return nn.Sequential(
        *(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU()),
        nn.Conv2d(4, 2, 1, bias=False),
    )


def use_all_codes(model: QuantizedModel) -> None:
    for name in shiftable_points(model):
        quantizer = model.activation_quantizers[name]
        amax = quantizer.scale * quantizer.grid.quant_max
        quantizer.grid = IntegerGrid.unsigned(8)
        quantizer.set_amax(amax)


def dyadic(module: nn.Module) -> QuantizedModel:
    """All values are small multiples of powers of two, so that float32 adds them exactly."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data.copy_((torch.randn(parameter.shape, generator=generator) * 64).round() / 64)
    model = quantized(trace(module.eval(), (4, 4)))
    for name in shiftable_points(model):
        model.activation_quantizers[name].grid = IntegerGrid.unsigned(8)
    for activation in model.activation_quantizers.values():
        activation.scale.fill_(2.0**-7)
    for weight in model.weight_quantizers.values():
        weight.scale.fill_(2.0**-6)
    return model


def biases(module: torch.fx.GraphModule) -> list[list[float]]:
    layers = [node for node in module.graph.nodes if node.target is aten.conv2d.default]
    return [get_tensor(module, node.args[2]).tolist() for node in layers]


@dataclass(frozen=True)
class Files:
    model: QuantizedModel
    plain: Path
    shifted: Path


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Files:
    """A depthwise + pointwise network on the plain and on the wider grid, after surgery."""
    precision: Precision = request.param
    folder = tmp_path_factory.mktemp("onnx")
    for name in ("plain", "shifted"):
        model = quantized(traced("reparameterized"))
        MinMaxCalibrator().calibrate(model, [smooth_images(64, seed=1)])
        if name == "shifted":
            use_all_codes(model)
        round_biases(model)
        export_qdq(model, folder / "qdq.onnx", CARD, precision=precision)
        assert not any(clean(folder / "qdq.onnx", folder / f"{name}.onnx").values())
    return Files(model, folder / "plain.onnx", folder / "shifted.onnx")


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def test_biases_by_hand() -> None:
    model = dyadic(nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.Conv2d(2, 1, 1, bias=False)))
    model.graph_module.get_parameter("0.bias").data = torch.tensor([1.0, -3.0])
    model.weight_of("2").data = torch.tensor([0.26, -0.5]).view(1, 2, 1, 1)  # 0.26 becomes 0.265625
    model.activation_quantizers["relu"].scale.fill_(0.5)
    shift_biases(model.graph_module)
    assert biases(model.graph_module) == [[-63.0, -67.0], [64 * (0.265625 - 0.5)]]
    assert not any(node.target is aten.relu.default for node in model.graph_module.graph.nodes)


@pytest.mark.parametrize("make", [chain, Twice])
def test_a_lowered_network_computes_what_the_fake_quantized_one_does(make: type) -> None:
    model, images = dyadic(make()), smooth_images(8, seed=0, size=4)
    state = {name: value.clone() for name, value in model.graph_module.state_dict().items()}
    codes = model.activation_quantizers["relu"]
    seen: list[torch.Tensor] = []
    hook = codes.register_forward_pre_hook(lambda m, x: seen.append(m.quantize(x[0])))
    expected = model(images)[0]
    hook.remove()
    assert (int(seen[0].min()), int(seen[0].max())) == (-128, 127)
    lowered = lower(model)
    assert torch.equal(lowered(images), expected)
    assert not any(
        node.target in (aten.relu.default, aten.clamp.default) for node in lowered.graph.nodes
    )
    assert all(torch.equal(state[k], v) for k, v in model.graph_module.state_dict().items())


def test_half_precision_rounds_the_shifted_biases_once() -> None:
    model = dyadic(chain())
    for name in ("relu", "relu_1"):
        model.activation_quantizers[name].scale.fill_(0.003)  # 128 of them are no FP16 number
    for whole, rounded in zip(biases(lower(model)), biases(lower(model, half=True)), strict=True):
        assert torch.tensor(whole).half().tolist() == rounded != whole


def test_an_offset_that_no_bias_can_absorb_is_refused() -> None:
    model = quantized(traced("detector"))  # its convolutions are padded
    next(iter(model.activation_quantizers.values())).grid = IntegerGrid.unsigned(8)
    with pytest.raises(AssertionError, match="cannot take its offset"):
        lower(model)


def behind_a_gelu(low: float, high: float) -> QuantizedModel:
    """Two layers, one without a bias, read a GELU on a grid with a zero point."""

    class Perceptron(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1, bias=False)
            self.third = nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = F.gelu(self.first(x))
            return self.second(y) + self.third(y)[..., :1]

    model = dyadic(Perceptron())
    quantizer = model.activation_quantizers["gelu"]
    quantizer.grid = IntegerGrid.unsigned(8)
    quantizer.set_range(torch.tensor(low), torch.tensor(high))
    return model


@pytest.mark.parametrize(("zero_point", "operators"), [(20, 1), (0, 1), (128, 0)])
def test_behind_a_gelu_a_subtraction_makes_the_codes_symmetric(
    zero_point: int, operators: int
) -> None:
    low, high = -zero_point / 128, (255 - zero_point) / 128
    model, images = behind_a_gelu(low, high), 3 * smooth_images(8, seed=0, size=4)
    quantizer = model.activation_quantizers["gelu"]
    assert (int(quantizer.zero_point), float(quantizer.scale)) == (zero_point, 2.0**-7)
    seen: list[torch.Tensor] = []
    hook = quantizer.register_forward_pre_hook(lambda m, x: seen.append(m.quantize(x[0])))
    expected = model(images)[0]
    hook.remove()
    assert int(seen[0].max()) == 127
    assert int(seen[0].min()) == -128 if zero_point == 0 else int(seen[0].min()) < -100 + zero_point
    lowered = lower(model)
    targets = [node.target for node in lowered.graph.nodes]
    assert targets.count(aten.sub.Tensor) == operators
    assert aten.gelu.default in targets
    codes = [n for n in lowered.graph.nodes if n.target is torch.ops.reptrt.quantize_linear.default]
    assert len(codes) == 2
    torch.testing.assert_close(lowered(images), expected, rtol=1e-5, atol=1e-5)


def test_onnx_runtime_computes_the_codes_behind_a_gelu(tmp_path: Path) -> None:
    model, images = behind_a_gelu(-20 / 64, 235 / 64), 3 * smooth_images(32, seed=0, size=4)
    preprocess = Preprocess((4, 4), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    card = ModelCard("toy", "classification", preprocess, 4, None, ("logits",))
    export_qdq(model, tmp_path / "qdq.onnx", card)
    clean(tmp_path / "qdq.onnx", tmp_path / "trt.onnx")
    proto = onnx.load(tmp_path / "trt.onnx")
    codes, (logits,) = torch_codes(model, proto, images)
    free, (outputs,) = onnx_codes(proto, images, optimized=False)
    assert agreement(free, codes) >= 0.999
    assert snr_db(outputs, logits) >= 60
    assert operators(tmp_path / "trt.onnx")["Sub"] == 1


def test_the_file_has_one_relu_less_and_nothing_more(files: Files) -> None:
    assert operators(files.plain) - operators(files.shifted) == Counter({"Relu": 1})
    assert not operators(files.shifted) - operators(files.plain)


def test_onnx_runtime_computes_pytorchs_codes_less_128(files: Files) -> None:
    proto, images = onnx.load(files.shifted), smooth_images(128, seed=5)
    is_half = "Cast" in operators(files.shifted)
    codes, (logits,) = torch_codes(files.model, proto, images)
    assert sum(array.min() == -128 and array.max() > 100 for array in codes.values()) == 1
    for optimized in (False, True):
        forced, (outputs,) = forced_codes(proto, images, codes, optimized=optimized)
        assert largest_step(forced, codes) <= 1
        assert agreement(forced, codes) >= (0.98 if is_half else 0.999)
        assert snr_db(outputs, logits) >= 60
    free, _ = onnx_codes(proto, images, optimized=False)
    assert agreement(free, codes) >= (0.95 if is_half else 0.999)


def test_tensorrt_rtx_builds_the_same_number_of_int8_kernels(files: Files, tmp_path: Path) -> None:
    rtx = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed here")
    reports = []
    for path in (files.plain, files.shifted):
        options = BuildOptions(compute_capabilities=((8, 6),), batch=(1, 2, 4))
        result = build_engine(path, tmp_path / "model.engine", rtx, options)
        reports.append(fusion_report(parse_kernels(result.layers), path))
    plain, shifted = reports
    assert shifted.int8_coverage == 100
    assert shifted.kernels == plain.kernels
