"""The exported file against the quantized PyTorch model, which is the reference."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from reptrt.calibrators.histogram.methods import MinMaxCalibrator
from reptrt.calibrators.quantized.quantizers import LogSqrt2Quantizer
from reptrt.models.graph import trace
from reptrt.pipeline.export.export import ExportError, export_float, export_qdq
from reptrt.pipeline.model_card import read_card
from tests.exported import Case, Exported, card
from tests.onnx_codes import (
    agreement,
    forced_codes,
    largest_step,
    onnx_codes,
    quantize_nodes,
    session,
    snr_db,
    torch_codes,
)
from tests.tiny_networks import SIZE, calibrated, quantized, randomize, smooth_images, traced

STATIC = 64


CASES = [
    Case("plain"),
    Case("plain", (6, 6), STATIC),
    Case("reparameterized"),
    Case("reparameterized", (6, 6)),
    Case("reparameterized", (4, 8), STATIC),
    Case("detector", (8, 8), STATIC),
    Case("detector", (6, 6)),
    Case("residual"),
    Case("residual", (4, 8)),
    Case("vit"),
    Case("vit", (6, 6), STATIC),
    Case("swin", (4, 8)),
    Case("vit", softmax="uniform"),
    Case("vit", (4, 4), softmax="log2"),
    Case("swin", (6, 6), STATIC, softmax="uniform"),
    Case("swin", softmax="log2"),
    Case("vit", softmax="fp8"),
    Case("swin", (4, 4), STATIC, softmax="fp8"),
]
HALF = [Case(name, precision="fp16") for name in ("plain", "detector", "vit")]
HALF += [Case("vit", precision="fp16", softmax=softmax) for softmax in ("uniform", "fp8")]


@pytest.fixture(params=CASES, ids=str)
def exported(request: pytest.FixtureRequest, export_once) -> Exported:
    return export_once(request.param)


@pytest.fixture(params=HALF, ids=str)
def half(request: pytest.FixtureRequest, export_once) -> Exported:
    return export_once(request.param)


def initializers(proto: onnx.ModelProto) -> dict[str, TensorProto]:
    return {tensor.name: tensor for tensor in proto.graph.initializer}


def types(proto: onnx.ModelProto) -> dict[str, int]:
    """Element type of every value, by type inference."""
    graph = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True).graph
    values = [*graph.value_info, *graph.input, *graph.output]
    return {value.name: value.type.tensor_type.elem_type for value in values}


def nodes(proto: onnx.ModelProto, *operators: str) -> list[onnx.NodeProto]:
    return [node for node in proto.graph.node if node.op_type in operators]


def test_integer_codes_equal_pytorchs_without_graph_optimizations(exported: Exported) -> None:
    codes, outputs = torch_codes(exported.model, exported.proto, exported.images)
    actual, actual_outputs = onnx_codes(exported.proto, exported.images, optimized=False)
    quantizers = exported.model.activation_quantizers.values()
    assert len(codes) >= sum(q.is_uniform for q in quantizers)
    assert all(np.unique(array).size >= 8 for array in codes.values())
    assert agreement(actual, codes) >= 0.999
    # rounding ties fall differently on processors with other vector units: 59.87 dB without AVX-512
    assert min(snr_db(a, b) for a, b in zip(actual_outputs, outputs, strict=True)) >= 59.5


def test_each_optimized_layer_stays_within_one_step_on_the_same_input(exported: Exported) -> None:
    codes, outputs = torch_codes(exported.model, exported.proto, exported.images)
    actual, actual_outputs = forced_codes(exported.proto, exported.images, codes, optimized=True)
    assert largest_step(actual, codes) <= 1
    assert agreement(actual, codes) >= 0.999
    assert min(snr_db(a, b) for a, b in zip(actual_outputs, outputs, strict=True)) >= 60


def test_the_optimized_network_agrees_end_to_end(exported: Exported) -> None:
    _, outputs = torch_codes(exported.model, exported.proto, exported.images)
    _, actual = onnx_codes(exported.proto, exported.images, optimized=True)
    snr = min(snr_db(a, b) for a, b in zip(actual, outputs, strict=True))
    same = min(np.mean(a.argmax(1) == b.argmax(1)) for a, b in zip(actual, outputs, strict=True))
    assert snr >= 35
    assert same >= 0.99


def test_the_file_is_typed_as_tensorrt_wants_it(exported: Exported) -> None:
    proto = exported.proto
    onnx.checker.check_model(proto, full_check=True)
    assert proto.ir_version == 10
    assert {o.domain: o.version for o in proto.opset_import}.get("", 0) == 19
    assert all(node.domain == "" for node in proto.graph.node)
    (images,) = proto.graph.input
    assert images.name == "images"
    assert images.type.tensor_type.elem_type == TensorProto.FLOAT
    batch = images.type.tensor_type.shape.dim[0]
    assert (batch.dim_value or None) == exported.case.batch_size
    assert bool(batch.dim_param) == (exported.case.batch_size is None)
    assert tuple(o.name for o in proto.graph.output) == card(exported.case.network).outputs


@pytest.mark.parametrize("case", [*CASES, *HALF], ids=str)
def test_every_scale_is_positive_and_every_zero_point_an_explicit_zero(
    case: Case, export_once
) -> None:
    exported = export_once(case)
    proto = exported.proto
    constants = initializers(proto)
    pairs = nodes(proto, "QuantizeLinear", "DequantizeLinear")
    fp8 = [node for node in pairs if constants[node.input[2]].data_type == TensorProto.FLOAT8E4M3FN]
    assert len(fp8) == 8 * len(exported.model.placement.attention) * (case.softmax == "fp8")
    assert len(pairs) > len(fp8)
    for node in pairs:
        assert len(node.input) == 3
        scale, zero = (constants[name] for name in node.input[1:])
        assert scale.data_type == TensorProto.FLOAT
        assert node in fp8 or zero.data_type == TensorProto.INT8
        assert scale.dims == zero.dims
        assert (numpy_helper.to_array(scale) > 0).all()
        assert not numpy_helper.to_array(zero).any()
        if scale.dims:
            axes = [attribute.i for attribute in node.attribute if attribute.name == "axis"]
            assert axes == [0]
            assert constants[node.input[0]].dims[0] == scale.dims[0]


@pytest.mark.parametrize("case", [*CASES, *HALF], ids=str)
def test_quantized_weights_are_int8_initializers_named_after_their_layers(
    case: Case, export_once
) -> None:
    exported = export_once(case)
    constants = initializers(exported.proto)
    weights = {
        node.input[0]: constants[node.input[0]]
        for node in nodes(exported.proto, "DequantizeLinear")
        if node.input[0] in constants
    }
    layers = exported.model.weight_quantizers
    assert set(weights) == {f"{layer}.weight_codes" for layer in layers}
    for layer, quantizer in layers.items():
        tensor = weights[f"{layer}.weight_codes"]
        expected = quantizer.quantize(exported.model.weight_of(layer)).numpy()
        assert tensor.data_type == TensorProto.INT8
        assert np.array_equal(numpy_helper.to_array(tensor), expected)
        assert np.abs(expected).max() == 2 ** (case.bits[0] - 1) - 1
    floats = {TensorProto.FLOAT, TensorProto.FLOAT16}
    left = [
        name
        for name, tensor in constants.items()
        if tensor.data_type in floats and name.removesuffix(".weight") in layers
    ]
    assert left == []


def test_weighted_nodes_carry_the_names_of_their_layers(exported: Exported) -> None:
    weighted = {n.name for n in nodes(exported.proto, "Conv", "ConvTranspose", "Gemm", "MatMul")}
    placement = exported.model.placement
    assert {*placement.layers.values(), *placement.float_layers} <= weighted


def test_q_and_dq_carry_the_names_of_what_they_quantize(exported: Exported) -> None:
    made = [node.name for node in quantize_nodes(exported.proto)]
    points = exported.model.activation_quantizers
    assert made
    assert all(name.partition(".quantize")[0] in points for name in made)
    every = {node.name for node in nodes(exported.proto, "DequantizeLinear")}
    assert {f"{layer}.weight.dequantize" for layer in exported.model.weight_paths} <= every
    assert len({node.name for node in exported.proto.graph.node}) == len(exported.proto.graph.node)


def test_codes_below_8_bits_stay_on_their_grid_behind_a_clip(exported: Exported) -> None:
    grids = {name: q.grid for name, q in exported.model.activation_quantizers.items()}
    producers = {output: node for node in exported.proto.graph.node for output in node.output}
    clipped = {
        node.input[1].removesuffix("_scale"): producers[node.input[0]].op_type == "Clip"
        for node in quantize_nodes(exported.proto)
        if node.input[0] in producers
    }
    narrow = exported.case.bits[1] < 8
    assert set(clipped.values()) <= {narrow}
    codes, _ = onnx_codes(exported.proto, exported.images * 4, optimized=False)  # saturates
    names = {n.output[0]: n.input[1].removesuffix("_scale") for n in quantize_nodes(exported.proto)}
    for name, array in codes.items():
        grid = grids[names[name]]
        assert grid.quant_min <= array.min()
        assert array.max() <= grid.quant_max
    assert any(array.max() == grids[names[name]].quant_max for name, array in codes.items())


def test_a_dynamic_file_runs_on_any_batch(exported: Exported) -> None:
    if exported.case.batch_size is not None:
        pytest.skip("its batch is fixed")
    whole = session(exported.proto, optimized=False).run(None, {"images": exported.images.numpy()})
    one = session(exported.proto, optimized=False).run(
        None, {"images": exported.images[:1].numpy()}
    )
    for a, b in zip(one, whole, strict=True):
        np.testing.assert_allclose(a, b[:1], rtol=0, atol=0.1 * np.abs(b).max())


def test_the_card_travels_in_the_file(exported: Exported) -> None:
    assert read_card(exported.path) == card(exported.case.network)
    assert sorted(path.name for path in exported.path.parent.iterdir()) == ["model.qdq.onnx"]


def test_half_precision_is_float16_everywhere_but_at_the_border_and_around_the_grid(
    half: Exported,
) -> None:
    proto = half.proto
    onnx.checker.check_model(proto, full_check=True)
    kinds, constants = types(proto), initializers(proto)
    borders = [value.name for value in (*proto.graph.input, *proto.graph.output)]
    assert {kinds[name] for name in borders} == {TensorProto.FLOAT}
    allowed = {*borders}
    for node in nodes(proto, "QuantizeLinear"):
        allowed |= {node.input[0], *node.input[1:2]}
    for node in nodes(proto, "DequantizeLinear"):
        allowed |= {node.output[0], node.input[1]}
    for node in nodes(proto, "Resize"):
        allowed |= {*node.input[1:3]}  # the factors are FP32 by definition
    full = {name for name, kind in kinds.items() if kind == TensorProto.FLOAT}
    full |= {name for name, t in constants.items() if t.data_type == TensorProto.FLOAT}
    assert full <= allowed, full - allowed
    for node in nodes(proto, "Conv", "ConvTranspose", "Gemm", "MatMul", "LayerNormalization"):
        assert kinds[node.output[0]] == TensorProto.FLOAT16, node.name


def test_half_precision_is_as_accurate_as_single_precision(half: Exported) -> None:
    with half.model.float_mode(), torch.no_grad():
        reference = [output.numpy() for output in half.model(half.images)]
    _, quantized_outputs = torch_codes(half.model, half.proto, half.images)
    codes, outputs = onnx_codes(half.proto, half.images, optimized=True)
    assert all(output.dtype == np.float32 for output in outputs)
    for output, single, exact in zip(outputs, quantized_outputs, reference, strict=True):
        assert snr_db(output, exact) >= snr_db(single, exact) - 1
    forced, _ = forced_codes(half.proto, half.images, codes, optimized=True)
    assert largest_step(forced, codes) <= 1


@pytest.mark.parametrize("name", ["plain", "detector", "vit"])
def test_the_float_file_is_the_float_network(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.fp32.onnx"
    export_float(traced(name), path, card(name))
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    assert not nodes(proto, "QuantizeLinear", "DequantizeLinear", "Clip", "BatchNormalization")
    images = smooth_images(4, seed=2)
    outputs = session(proto, optimized=True).run(None, {"images": images.numpy()})
    with torch.no_grad():
        expected = traced(name)(images)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for output, tensor in zip(outputs, expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(output), tensor, rtol=1e-4, atol=1e-5)
    assert read_card(path) == card(name)


class Repeats(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = self.conv(x)
        return found, found, x


def test_outputs_that_are_one_tensor_or_the_image_keep_their_names(tmp_path: Path) -> None:
    names = ("first", "second", "image")
    repeats = replace(card("plain"), task="generic", outputs=names)
    export_float(trace(Repeats().eval(), (SIZE, SIZE)), tmp_path / "m.onnx", repeats)
    images = smooth_images(2, seed=2).numpy()
    loaded = session(onnx.load(tmp_path / "m.onnx"), optimized=True)
    assert [value.name for value in loaded.get_outputs()] == list(names)
    first, second, image = loaded.run(None, {"images": images})
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(image, images)


@pytest.mark.parametrize("name", ["plain", "detector", "vit", "swin"])
def test_the_float_file_names_its_layers_as_the_qdq_file_does(name: str, tmp_path: Path) -> None:
    export_float(traced(name), tmp_path / "model.fp32.onnx", card(name))
    found = nodes(
        onnx.load(tmp_path / "model.fp32.onnx"), "Conv", "ConvTranspose", "Gemm", "MatMul"
    )
    placement = quantized(traced(name)).placement
    assert {*placement.layers.values(), *placement.float_layers} <= {node.name for node in found}


def test_dead_channels_and_activations_keep_their_bias_when_the_graph_is_optimized(
    tmp_path: Path,
) -> None:
    layers = [nn.Conv2d(3, 8, 3), *(nn.Conv2d(8, 8, 1) for _ in range(4))]
    module = randomize(nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU()))))
    layers[1].weight.data[::2] *= 1e-10
    layers[2].bias.data[:] = -1e6  # its ReLU returns zeros only
    layers[1].bias.data[:] = layers[3].bias.data[:] = torch.linspace(0.5, 2, 8)
    images = smooth_images(16, seed=1)
    model = quantized(trace(module, (SIZE, SIZE)))
    MinMaxCalibrator().calibrate(model, [images])
    export_qdq(model, tmp_path / "model.onnx", card("plain"))
    proto = onnx.load(tmp_path / "model.onnx")
    codes, _ = torch_codes(model, proto, images)
    assert [bool(array.any()) for array in codes.values()].count(False) == 1
    actual, _ = forced_codes(proto, images, codes, optimized=True)
    assert largest_step(actual, codes) <= 1


def test_layers_kept_float_are_float_in_the_file(tmp_path: Path) -> None:
    model = quantized(traced("plain"), keep_float=["9"])
    for quantizer in [*model.activation_quantizers.values(), *model.weight_quantizers.values()]:
        quantizer.set_amax(torch.tensor(3.0))
    export_qdq(model, tmp_path / "model.onnx", card("plain"))
    constants = initializers(onnx.load(tmp_path / "model.onnx"))
    assert "9.weight" in constants
    assert "9.weight_codes" not in constants
    assert {name for name in constants if name.endswith("_codes")} == {
        *("0.weight_codes", "4.weight_codes")
    }


def test_an_operator_without_onnx_form_gives_one_line_and_no_file(tmp_path: Path) -> None:
    class Rare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.bessel_j0(self.conv(x))

    model = quantized(trace(Rare().eval(), (SIZE, SIZE)))
    with pytest.raises(ExportError) as caught:
        export_qdq(model, tmp_path / "model.onnx", card("plain"))
    assert "\n" not in str(caught.value)
    assert "bessel_j0" in str(caught.value)
    assert caught.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bits", [(8, 8), (4, 4)])
def test_logarithmic_probabilities_have_pytorchs_codes(
    tmp_path: Path, bits: tuple[int, int]
) -> None:
    model, images = calibrated("vit", bits, softmax="log2"), smooth_images(64, seed=5)
    quantizer = model.activation_quantizers["softmax"]
    assert isinstance(quantizer, LogSqrt2Quantizer)
    expected: list[torch.Tensor] = []
    quantizer.register_forward_pre_hook(lambda q, x: expected.append(q.codes(x[0])))
    with torch.no_grad():
        model(images)
    export_qdq(model, tmp_path / "model.onnx", card("vit"))
    proto = onnx.load(tmp_path / "model.onnx")
    (is_zero,) = nodes(proto, "Equal")
    output = helper.make_tensor_value_info(is_zero.input[0], TensorProto.FLOAT, None)
    proto.graph.output.append(output)
    (codes,) = session(proto, optimized=False).run([is_zero.input[0]], {"images": images.numpy()})
    assert np.mean(codes == expected[0].numpy()) >= 0.999
    assert np.abs(codes - expected[0].numpy()).max() <= 1
