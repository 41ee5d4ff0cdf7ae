"""The file data/rtx_1_7_1_layers.txt is `mixed_onnx(half=True)` as TensorRT-RTX 1.7.1.116 lists it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import pytest

from reptrt.engines.build.builder import BuildOptions, build_engine
from reptrt.engines.inspection.fusion import Kernel, LayerListError, fusion_report, parse_kernels
from reptrt.engines.inspection.kernels import Tensor
from reptrt.engines.inspection.placement_notes import NotesError

RTX_LOG = Path(__file__).parents[1] / "data" / "rtx_1_7_1_layers.txt"
CLASSIC_10 = {
    "Layers": [
        {
            "Name": "conv1 + relu1",
            "LayerType": "CaskConvolution",
            "Inputs": [
                {"Name": "x", "Format/Datatype": "Thirty-two wide channel vectorized Int8 format"}
            ],
            "Outputs": [{"Name": "y", "Format/Datatype": "Row major linear FP16 format"}],
            "Weights": {"Type": "Int8", "Count": 1024},
            "Metadata": "[ONNX Layer: conv1]\u001f[ONNX Layer: relu1]",
        }
    ],
    "Bindings": ["x", "y"],
}
CLASSIC_11 = {
    "Layers": [
        {
            "Name": "conv1 + relu1",
            "LayerType": "CaskConvolution",
            "Inputs": [{"Name": "x", "Format": "NC/32HW32", "Datatype": "Int8"}],
            "Outputs": [{"Name": "y", "Format": "Linear", "Datatype": "Half"}],
            "Weights": {"Type": "Int8", "Count": 1024},
            "Metadata": "[ONNX Layer: conv1][ONNX Layer: relu1]",
        }
    ],
    "I/O Tensors": [{"Name": "x", "DataType": "Int8"}],
}


@pytest.fixture(scope="module")
def rtx():
    return pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed here")


@pytest.fixture
def live_report(rtx, tmp_path):
    def build(onnx_path: Path, capability: tuple[int, int] = (8, 6)):
        options = BuildOptions(compute_capabilities=(capability,), batch=(1, 2, 4))
        result = build_engine(onnx_path, tmp_path / "m.engine", rtx, options)
        return fusion_report(parse_kernels(result.layers), onnx_path)

    return build


def reasons(report) -> dict[str, str]:
    return {island.layer: island.reason for island in report.float_islands}


def test_the_rtx_log_lists_every_kernel_with_datatypes_and_onnx_layers():
    kernels = parse_kernels(RTX_LOG.read_text())
    stem = next(kernel for kernel in kernels if kernel.name.startswith("stem_"))
    assert stem.kind == "correlation"
    assert stem.inputs[0].dtype == stem.weights[0].dtype == "Int8"
    assert stem.outputs[0].dtype == "Float"
    assert "stem" in stem.onnx_layers
    assert [kernel.name for kernel in kernels if kernel.is_int8] == ["stem_myl0_1", "body_myl0_3"]


def test_the_stored_log_gives_the_report_of_its_graph(mixed_onnx):
    report = fusion_report(parse_kernels(RTX_LOG.read_text()), mixed_onnx(half=True))
    assert (report.int8_layers, report.quantizable_layers) == (2, 3)
    assert report.int8_coverage == pytest.approx(66.67)
    assert reasons(report) == {
        "head": "not quantized: no Q/DQ on its activation and none on its weight"
    }
    assert report.kernels == len(report.fused_kernels) == 7
    json.dumps(asdict(report))


@pytest.mark.parametrize(
    ("key", "text"),
    [("reptrt.float_layers", "["), ("reptrt.float_layers", "[1]"), ("reptrt.float_layers", '{"a": 1}'),
     ("reptrt.islands", "[" * 9000), ("reptrt.islands", "3"), ("reptrt.islands", "[3]"),
     ("reptrt.islands", '[{"nodes": "ab", "op_types": [], "role": "tail", "reason": "x"}]'),
     ("reptrt.islands", '[{"nodes": [], "op_types": [], "role": "tail", "reason": 1}]')],
)  # fmt: skip
def test_notes_in_a_file_that_export_did_not_write_are_one_line(mixed_onnx, key, text):
    path = mixed_onnx(half=True)
    model = onnx.load(path)
    model.metadata_props.add(key=key, value=text)
    onnx.save(model, path)
    with pytest.raises(NotesError, match="export again") as caught:
        fusion_report((), path)
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("inspector", "formats"),
    [
        (
            CLASSIC_10,
            ("Thirty-two wide channel vectorized Int8 format", "Row major linear FP16 format"),
        ),
        (CLASSIC_11, ("NC/32HW32", "Linear")),
    ],
    ids=["10", "11"],
)
def test_both_forms_of_the_inspector_json_are_read(inspector, formats):
    (kernel,) = parse_kernels(json.dumps(inspector))
    assert kernel == Kernel(
        name="conv1 + relu1",
        kind="CaskConvolution",
        inputs=(Tensor("x", "Int8", format=formats[0]),),
        weights=(Tensor("Weights", "Int8", (1024,)),),
        outputs=(Tensor("y", "Half", format=formats[1]),),
        onnx_layers=("conv1", "relu1"),
    )
    assert kernel.is_int8


@pytest.mark.parametrize("text", ["", "Name: conv", json.dumps({"Layers": ["conv1 + relu1"]})])
def test_a_log_without_details_is_refused(text):
    with pytest.raises(LayerListError, match="DETAILED"):
        parse_kernels(text)


def test_a_layer_line_of_unknown_form_is_refused():
    with pytest.raises(LayerListError, match="unknown form"):
        parse_kernels("Layers:\nName: conv, Kind: correlation")


def test_brackets_and_commas_in_node_names_survive():
    line = "Name: a[0], b_1, LayerType: gemm, Inputs: [], Constants: [], Outputs: [], TacticName: t"
    (kernel,) = parse_kernels(f"Layers:\n{line}, StreamId: 0, Metadata: [ONNX Layer: a[0], b]")
    assert (kernel.name, kernel.onnx_layers) == ("a[0], b_1", ("a[0], b",))


def test_waits_between_streams_are_not_kernels():
    lists = "Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 1, Metadata: "
    assert parse_kernels(f"Layers:\nName: m_1, LayerType: signal, {lists}") == ()


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "fp16"])
def test_a_live_build_reads_int8_in_every_quantized_layer(live_report, mixed_onnx, half):
    report = live_report(mixed_onnx(half=half))
    assert (report.int8_layers, report.quantizable_layers) == (2, 3)
    assert list(reasons(report)) == ["head"]


def test_a_dynamic_batch_keeps_the_coverage(live_report, mixed_onnx):
    assert live_report(mixed_onnx(batch="N")).int8_layers == 2


def test_turing_emulates_int8_convolutions_and_the_report_says_so(live_report, mixed_onnx):
    report = live_report(mixed_onnx(half=True), capability=(7, 5))
    assert report.int8_layers == 0
    assert reasons(report)["stem"].startswith("quantized, but the compiler chose float: kernel")


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "fp16"])
def test_depthwise_grouped_pooled_concat_and_linear_layers_are_int8(
    live_report, qdq_graph, tmp_path, half
):
    graph = qdq_graph(half)
    x = graph.qdq(graph.relu(graph.conv(graph.qdq(graph.start()), "stem", (32, 3, 3, 3))))
    x = graph.qdq(graph.conv(x, "depthwise", (32, 1, 3, 3), group=32))
    x = graph.qdq(graph.relu(graph.conv(x, "grouped", (32, 8, 3, 3), group=4)))
    x = graph.add("MaxPool", [x], "pooled", kernel_shape=[2, 2], strides=[2, 2])
    left = graph.qdq(graph.conv(x, "left", (32, 32, 1, 1)))
    right = graph.qdq(graph.relu(graph.conv(x, "right", (32, 32, 1, 1))))
    x = graph.conv(graph.add("Concat", [left, right], "both", axis=1), "post", (32, 64, 1, 1))
    x = graph.add("Flatten", [graph.add("GlobalAveragePool", [x], "mean")], "flat")
    x = graph.add(
        "Gemm", [graph.qdq(x), graph.weight("g", (32, 32))], "gemm", name="gemm", transB=1
    )
    x = graph.add("MatMul", [graph.qdq(x), graph.weight("m", (32, 16), 1)], "mm", name="matmul")
    report = live_report(graph.save(tmp_path / "all.onnx", x, [1, 3, 16, 16]))
    assert reasons(report) == {}
    assert report.int8_layers == report.quantizable_layers == 8


def test_half_quantized_and_transposed_layers_are_islands_with_their_reason(
    live_report, qdq_graph, tmp_path
):
    graph = qdq_graph(half=True)
    x = graph.relu(graph.conv(graph.start(), "weight_only", (32, 3, 3, 3)))
    x = graph.relu(graph.conv(graph.qdq(x), "activation_only", (32, 32, 3, 3), axis=None))
    kernel = graph.weight("up_w", (32, 32, 2, 2), axis=None)
    x = graph.add("ConvTranspose", [x, kernel], "up_y", name="up", strides=[2, 2])
    x = graph.conv(graph.qdq(x), "wrong_axis", (32, 32, 3, 3), axis=1)
    report = live_report(graph.save(tmp_path / "islands.onnx", x, [1, 3, 16, 16]))
    assert reasons(report) == {
        "weight_only": "half quantized: no Q/DQ on its activation, only on its weight",
        "activation_only": "half quantized: no Q/DQ on its weight, only on its activation",
        "up": "ConvTranspose stays float",
        "wrong_axis": "quantized, but its weight scale runs along axis 1: TensorRT wants 0, "
        "the output channels",
    }
    assert (report.int8_layers, report.quantizable_layers) == (0, 3)


def test_a_concat_of_different_scales_is_named_as_the_reason(live_report, qdq_graph, tmp_path):
    graph = qdq_graph(half=True)
    x = graph.qdq(graph.start())
    left = graph.qdq(graph.relu(graph.conv(x, "left", (32, 3, 3, 3))), scale=0.03)
    right = graph.qdq(graph.conv(x, "right", (32, 3, 3, 3)), scale=0.07)
    both = graph.add("Concat", [left, right], "both", axis=1)
    path = graph.save(tmp_path / "c.onnx", graph.conv(both, "post", (32, 64, 1, 1)), [1, 3, 16, 16])
    found = reasons(live_report(path))
    assert list(found) == ["post"]
    assert "Concat of different scales" in found["post"]


def test_a_dequantizing_matmul_is_not_int8(live_report, qdq_graph, tmp_path):
    graph = qdq_graph(half=True)
    shape = graph.constant("shape", np.array([-1, 16]))
    x = graph.qdq(graph.add("Reshape", [graph.start(), shape], "rows"))
    x = graph.add("MatMul", [x, graph.weight("w", (16, 16), axis=0)], "mm", name="matmul")
    report = live_report(graph.save(tmp_path / "m.onnx", x, [2, 3, 16, 16]))
    assert report.int8_layers == 0
    assert "axis 0: TensorRT wants 1" in reasons(report)["matmul"]


def test_attention_products_are_not_quantizable_and_unnamed_nodes_are_found(
    live_report, qdq_graph, tmp_path
):
    graph = qdq_graph(half=True)
    x = graph.qdq(graph.start())
    query = graph.add("MatMul", [x, graph.weight("q", (16, 16), 1)], "query", name="")
    key = graph.add("MatMul", [x, graph.weight("k", (16, 16), 1)], "key", name="")
    turned = graph.add("Transpose", [key], "key_t", perm=[0, 1, 3, 2])
    product = graph.add("MatMul", [query, turned], "product")
    report = live_report(graph.save(tmp_path / "a.onnx", product, [1, 3, 16, 16]))
    assert (report.int8_layers, report.quantizable_layers) == (2, 2)


@pytest.mark.parametrize(("quantized", "fused"), [(False, 1), (True, 0)])
def test_attention_is_one_kernel_until_its_products_are_quantized(
    live_report, qdq_graph, tmp_path, quantized, fused
):
    graph = qdq_graph(half=True)
    shape = graph.constant("heads", np.array([0, 3, 64, 32]))
    x = graph.qdq(graph.start())
    query, key, value = (
        graph.add(
            "Reshape",
            [graph.add("MatMul", [x, graph.weight(name, (32, 32), 1)], f"{name}_y"), shape],
            f"{name}_heads",
        )
        for name in "qkv"
    )
    turned = graph.add("Transpose", [key], "turned", perm=[0, 1, 3, 2])
    scores = graph.add("MatMul", [query, turned], "scores")
    bias = graph.constant("bias", np.ones((3, 64, 64), np.float16))
    likely = graph.add("Softmax", [graph.add("Add", [bias, scores], "biased")], "likely", axis=-1)
    likely = graph.qdq(likely) if quantized else likely
    value = graph.qdq(value) if quantized else value
    y = graph.add("MatMul", [likely, value], "mixed")
    report = live_report(graph.save(tmp_path / "attention.onnx", y, [1, 3, 64, 32]))
    assert (report.attention_blocks, report.fused_attention) == (1, fused)
    assert report.int8_coverage == 100
