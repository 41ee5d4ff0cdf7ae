"""Each row of the table of commuting operators, asked of TensorRT-RTX's builder."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest

from reptrt.engines.build.builder import BuildOptions, build_engine
from reptrt.engines.commuting import CARRIED_OPS
from reptrt.engines.inspection.fusion import fusion_report, parse_kernels
from reptrt.engines.inspection.qdq_graph import read_weighted_layers
from tests.engines.conftest import QdqGraph
from tests.engines.lint.rtx import needs_rtx

CHANNELS = {"DepthToSpace": 8, "SpaceToDepth": 128}
FROM_THE_CORNER = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric"}
CONSTANTS: dict[str, list[list[int]]] = {
    "Expand": [[2, 32, 16, 16]],
    "Gather": [[0, 1, 2, 3]],
    "Pad": [[0, 0, 2, 2, 0, 0, 2, 2]],
    "Reshape": [[1, 32, 32, 8]],
    "Slice": [[0], [8], [2]],
    "Squeeze": [[1]],
    "Tile": [[1, 1, 2, 2]],
    "Unsqueeze": [[1]],
}
POOLING: dict[str, object] = {"kernel_shape": [2, 2], "strides": [2, 2]}
ATTRIBUTES: dict[str, dict[str, object]] = {
    "AveragePool": POOLING,
    "Cast": {"to": 1},
    "DepthToSpace": {"blocksize": 2},
    "Gather": {"axis": 2},
    "MaxPool": POOLING,
    "SpaceToDepth": {"blocksize": 2},
    "Split": {"axis": 2, "num_outputs": 1},
    "Transpose": {"perm": [0, 1, 3, 2]},
}


def apply(graph: QdqGraph, op: str, tensor: str) -> str:
    """`tensor` [1, 32, 16, 16] through `op`, of rank 4 again."""
    constants = [
        graph.constant(f"{op}_{i}", np.array(values, np.int64))
        for i, values in enumerate(CONSTANTS.get(op, []))
    ]
    if op == "Squeeze":
        axes = graph.constant("axes", np.array([1], np.int64))
        tensor = graph.add("Unsqueeze", [tensor, axes], "unsqueezed")
    if op == "Resize":
        scales = graph.constant("scales", np.array([1, 1, 2, 2], np.float32))
        return graph.add(op, [tensor, "", scales], "moved", **FROM_THE_CORNER)
    result = graph.add(op, [tensor, *constants], f"moved_{op}", **ATTRIBUTES.get(op, {}))
    if op in ("Flatten", "Unsqueeze"):
        shape = graph.constant("shape", np.array([1, 32, 16, 16], np.int64))
        return graph.add("Reshape", [result, shape], f"{op}_back")
    return result


def write(path: Path, op: str, *, pair_in_front: bool) -> Path:
    """Convolution, Relu, `op` and convolution, with Q/DQ in front of `op` or behind it."""
    graph = QdqGraph()
    first = graph.relu(graph.conv(graph.qdq("images"), "first", (32, 3, 3, 3)))
    read = (
        apply(graph, op, graph.qdq(first)) if pair_in_front else graph.qdq(apply(graph, op, first))
    )
    last = graph.conv(read, "last", (32, CHANNELS.get(op, 32), 3, 3))
    return graph.save(path, last, [1, 3, 16, 16])


def int8_layers(onnx: Path) -> int:
    trt = importlib.import_module("tensorrt_rtx")
    built = build_engine(onnx, onnx.with_suffix(".engine"), trt, BuildOptions(((8, 6),)))
    return fusion_report(parse_kernels(built.layers), onnx).int8_layers


@needs_rtx
@pytest.mark.parametrize("op", sorted(CARRIED_OPS))
def test_the_layer_behind_is_int8_with_the_pair_in_front(op: str, tmp_path: Path) -> None:
    onnx = write(tmp_path / "in_front.onnx", op, pair_in_front=True)
    assert int8_layers(onnx) == 2
    assert [layer.quantized for layer in read_weighted_layers(onnx)] == [True, True]


@needs_rtx
@pytest.mark.parametrize("op", ["Resize", "AveragePool", "Relu"])
def test_the_layer_behind_another_operator_is_int8_only_with_the_pair_behind(
    op: str, tmp_path: Path
) -> None:
    in_front = write(tmp_path / "in_front.onnx", op, pair_in_front=True)
    behind = write(tmp_path / "behind.onnx", op, pair_in_front=False)
    assert (int8_layers(in_front), int8_layers(behind)) == (1, 2)
    assert [layer.quantized for layer in read_weighted_layers(in_front)] == [True, False]
