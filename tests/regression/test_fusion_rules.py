"""The layers that rules predict, against those of engines that classic TensorRT built."""

from __future__ import annotations

import io
import time
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
import torchvision
from torch import nn

from reptrt.engines.fusion_rules import predict_kernels
from reptrt.engines.inspection.kernels import Kernel, Tensor, parse_kernels
from reptrt.models.fuse import reparameterize
from reptrt.models.load import load_random
from tests.onnx_quantizing import quantize_inputs

A100, TITAN_RTX, T4 = (8, 0), (7, 5), (7, 5)


def exported(module: nn.Module, size: int = 224) -> onnx.ModelProto:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            (torch.zeros(1, 3, size, size),),
            file,
            dynamo=False,
            input_names=["input"],
            dynamic_axes={"input": {0: "batch"}},
        )
    return onnx.load_from_string(file.getvalue())


@pytest.fixture(scope="module")
def resnet18() -> onnx.ModelProto:
    return exported(torchvision.models.resnet18(weights=None))


@pytest.fixture(scope="module")
def mobilenet() -> onnx.ModelProto:
    return exported(torchvision.models.mobilenet_v2(weights=None))


def real_layers(data: Path, engine: str) -> tuple[Kernel, ...]:
    return parse_kernels((data / "engines" / engine / "graph.json").read_text())


def work(kernels: tuple[Kernel, ...]) -> list[Kernel]:
    """Layers that run a kernel: a NoOp is a view, and costs nothing."""
    return [kernel for kernel in kernels if kernel.kind != "NoOp"]


def appearance(kernel: Kernel) -> tuple[object, ...]:
    """What can be compared of two layers whose tensors have other names."""
    return (kernel.kind, described(kernel.inputs), described(kernel.outputs), kernel.operations)


def described(tensors: tuple[Tensor, ...]) -> tuple[object, ...]:
    return tuple((tensor.dtype, tensor.dims, layout(tensor)) for tensor in tensors)


def layout(tensor: Tensor) -> str:
    """Its first words; steps of channels are left out, which timing decides."""
    return " ".join(tensor.format.split()[:2]).replace("major linear", "major")


def differences(predicted: list[Kernel], real: list[Kernel]) -> list[tuple[object, ...]]:
    left, right = Counter(map(appearance, predicted)), Counter(map(appearance, real))
    return [
        *(("only predicted", *one) for one in (left - right).elements()),
        *(("only real", *one) for one in (right - left).elements()),
    ]


def test_resnet18_with_pairs_at_convolution_inputs(
    resnet18: onnx.ModelProto, reptrt_data: Path
) -> None:
    real = real_layers(reptrt_data, "a100_resnet18_b32_int8_conv_inputs")
    predicted = predict_kernels(
        quantize_inputs(resnet18), batch=32, compute_capability=A100, remainder="fp16"
    )
    assert not differences(work(predicted), work(real))
    assert len(predicted) == len(real) == 37


def test_resnet18_with_pairs_on_skips(resnet18: onnx.ModelProto, reptrt_data: Path) -> None:
    real = real_layers(reptrt_data, "a100_resnet18_b32_int8_skips")
    predicted = predict_kernels(
        quantize_inputs(resnet18, skips=True), batch=32, compute_capability=A100, remainder="fp16"
    )
    assert not differences(work(predicted), work(real))
    assert len(predicted) == len(real) == 26


def test_resnet18_in_fp16(resnet18: onnx.ModelProto, reptrt_data: Path) -> None:
    real = real_layers(reptrt_data, "a100_resnet18_b32_fp16")
    predicted = predict_kernels(resnet18, batch=32, compute_capability=A100, remainder="fp16")
    assert not differences(work(predicted), work(real))
    assert (len(predicted), len(real), len(steps_of_channels(real))) == (27, 36, 9)


def test_resnet18_in_fp32(resnet18: onnx.ModelProto, reptrt_data: Path) -> None:
    real = real_layers(reptrt_data, "a100_resnet18_b32_fp32")
    predicted = predict_kernels(resnet18, batch=32, compute_capability=A100)
    assert not differences(work(predicted), work(real))
    assert (len(predicted), len(real), len(steps_of_channels(real))) == (26, 32, 6)


@pytest.mark.parametrize(
    ("one", "other"), [("Conv_26", "Conv_30 + Relu_31"), ("Conv_41 + Relu_42", "Conv_37")]
)
def test_steps_of_channels_follow_from_neither_kernel_nor_sizes(
    reptrt_data: Path, one: str, other: str
) -> None:
    """So no rule can predict the nine NoOps between them."""
    real = {kernel.name: kernel for kernel in real_layers(reptrt_data, "a100_resnet18_b32_fp16")}
    first, second = real[one], real[other]
    assert (first.tactic, appearance(first)) == (second.tactic, appearance(second))
    assert "% 16" in first.inputs[0].format
    assert "% 8" in second.inputs[0].format


def steps_of_channels(kernels: tuple[Kernel, ...]) -> list[Kernel]:
    """NoOps between steps of channels of one layout, which follow from the builder's timing."""
    views = [kernel for kernel in kernels if kernel.kind == "NoOp"]
    return [view for view in views if described(view.inputs) == described(view.outputs)]


def test_mobilenet_v2_but_for_six_layers_that_the_builder_wrote_in_fp32(
    mobilenet: onnx.ModelProto, reptrt_data: Path
) -> None:
    """FP16 was allowed, and taken for five other such groups: timing decided, no rule can."""
    real = real_layers(reptrt_data, "titanrtx_mobilenet_b1_int8")
    predicted = predict_kernels(
        quantize_inputs(mobilenet), batch=1, compute_capability=TITAN_RTX, remainder="fp16"
    )
    assert len(predicted) == len(real) == 73
    chosen = Counter(appearance(with_half(kernel)) for kernel in real)
    assert chosen == Counter(map(appearance, predicted))
    assert sum(with_half(kernel) != kernel for kernel in real) == 6


def with_half(kernel: Kernel) -> Kernel:
    """`kernel` as if its tensors of 160 channels in FP32 were in FP16."""
    return replace(kernel, inputs=halved(kernel.inputs), outputs=halved(kernel.outputs))


def halved(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(
        replace(one, dtype="Half") if (one.dtype, one.dims) == ("Float", (1, 160, 7, 7)) else one
        for one in tensors
    )


def test_yolov6n_on_a_t4_is_predicted_at_once() -> None:
    """11.4 GFLOPs are published; no engine of it is at hand to compare its 92 layers with."""
    network = exported(reparameterize(load_random("yolov6n").module), 640)
    started = time.process_time()
    kernels = work(predict_kernels(network, compute_capability=T4, remainder="fp16"))
    assert time.process_time() - started < 5
    assert sum(kernel.operations for kernel in kernels) == pytest.approx(11.4e9, rel=0.02)
    assert all(kernel.has_shapes for kernel in kernels)
    assert {tensor.dtype for kernel in kernels for tensor in kernel.outputs} == {"Half", "Float"}
    kinds = Counter(kernel.kind for kernel in kernels)
    assert (kinds["CaskConvolution"], kinds["CaskDeconvolution"], kinds["CudaPooling"]) == (
        64,
        2,
        3,
    )
