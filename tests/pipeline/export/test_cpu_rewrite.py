"""The file for ONNX Runtime on a CPU: the same codes, and integer kernels that fuse."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from reptrt.engines.surgery import clean, rewrite_for_cpu
from reptrt.models.card import ModelCard
from reptrt.models.spec import Preprocess
from reptrt.pipeline.export.export import export_qdq
from reptrt.pipeline.model_card import read_card
from tests.onnx_codes import quantize_nodes, session
from tests.tiny_networks import SIZE, calibrated, smooth_images

PREPROCESS = Preprocess((SIZE, SIZE), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
CASES = [
    ("plain", (8, 8)),
    ("plain", (6, 6)),
    ("reparameterized", (8, 8)),
    ("reparameterized", (4, 4)),
    ("detector", (8, 8)),
    ("residual", (8, 8)),
    ("vit", (8, 8)),
    ("swin", (6, 6)),
]


@pytest.fixture(scope="module")
def rewritten(tmp_path_factory: pytest.TempPathFactory):
    done: dict[tuple[str, tuple[int, int]], tuple[Path, Path]] = {}

    def make(case: tuple[str, tuple[int, int]]) -> tuple[Path, Path]:
        if case not in done:
            folder = tmp_path_factory.mktemp("cpu")
            names = ("p1", "p2", "p3") if case[0] == "detector" else ("logits",)
            model = calibrated(*case)
            card = ModelCard(case[0], "classification", PREPROCESS, 10, None, names)
            export_qdq(model, folder / "qdq.onnx", card)
            clean(folder / "qdq.onnx", folder / "trt.onnx")
            rewrite_for_cpu(folder / "trt.onnx", folder / "cpu.onnx")
            done[case] = folder / "trt.onnx", folder / "cpu.onnx"
        return done[case]

    return make


def codes(path: Path, images: np.ndarray) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    """Codes of every activation as they are read, less their zero point; and the outputs."""
    proto = onnx.load(path)
    clipped = {node.input[0]: node.output[0] for node in proto.graph.node if node.op_type == "Clip"}
    types = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    read = {}
    outputs = [output.name for output in proto.graph.output]
    for node in quantize_nodes(proto):
        name = clipped.get(node.output[0], node.output[0])
        is_uint8 = types[node.input[2]] == TensorProto.UINT8
        read[node.output[0]] = name, 128 * is_uint8
        proto.graph.output.append(helper.make_tensor_value_info(name, types[node.input[2]], None))
    run = session(proto, optimized=False).run
    values = run(outputs + [name for name, _ in read.values()], {"images": images})
    shown = values[len(outputs) :]
    return {
        key: value.astype(np.int32) - zero_point
        for (key, (_, zero_point)), value in zip(read.items(), shown, strict=True)
    }, values[: len(outputs)]


def optimized_ops(path: Path, tmp_path: Path) -> Counter[str]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    graph = onnx.load(tmp_path / "optimized.onnx").graph
    return Counter(node.op_type for node in graph.node)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_code_and_every_output_is_the_same(rewritten, case) -> None:
    before, after = rewritten(case)
    images = smooth_images(8, seed=5).numpy()
    expected, expected_outputs = codes(before, images)
    actual, outputs = codes(after, images)
    assert expected
    for name, value in expected.items():
        np.testing.assert_array_equal(actual[name], value)
    for one, other in zip(outputs, expected_outputs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_convolutions_become_integer_kernels(rewritten, tmp_path: Path) -> None:
    before, after = rewritten(("reparameterized", (8, 8)))
    assert optimized_ops(before, tmp_path)["QLinearConv"] == 0  # why the rewrite is there
    fused = optimized_ops(after, tmp_path)
    assert fused["QLinearConv"] == 3
    assert fused["Conv"] + fused["FusedConv"] == 1  # whose output is averaged in float


def test_a_concat_in_front_of_a_convolution_joins_codes(rewritten, tmp_path: Path) -> None:
    _, after = rewritten(("detector", (8, 8)))
    fused = optimized_ops(after, tmp_path)
    assert fused["QLinearConv"] >= 3
    proto = onnx.load(after)
    readers = {name for node in proto.graph.node for name in node.input}
    for node in proto.graph.node:
        if node.op_type == "Concat" and node.output[0] in readers:
            nexts = [n.op_type for n in proto.graph.node if node.output[0] in n.input]
            assert nexts == ["QuantizeLinear"]


def test_the_model_card_travels_with_the_file(rewritten) -> None:
    before, after = rewritten(("plain", (8, 8)))
    assert read_card(after) == read_card(before)
