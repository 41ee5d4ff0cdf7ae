"""Toy ONNX graphs with explicit Q/DQ, small enough to build in a tenth of a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper


class QdqGraph:
    """Grows an ONNX graph node by node; with `half`, everything but Q/DQ is FP16."""

    def __init__(self, half: bool = False) -> None:
        self.half = half
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self.random = np.random.default_rng(0)

    def add(self, op: str, inputs: list[str], output: str, **attributes: object) -> str:
        attributes.setdefault("name", f"n_{output}")
        self.nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    def constant(self, name: str, values: object) -> str:
        self.tensors.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def start(self) -> str:
        return self.cast("images", "images_half", TensorProto.FLOAT16) if self.half else "images"

    def cast(self, tensor: str, output: str, to: int) -> str:
        return self.add("Cast", [tensor], output, to=to)

    def qdq(self, tensor: str, scale: float = 0.05) -> str:
        step = self.constant(f"{tensor}_scale", np.float32(scale))
        zero = self.constant(f"{tensor}_zero", np.int8(0))
        source = self.cast(tensor, f"{tensor}_f", TensorProto.FLOAT) if self.half else tensor
        self.add("QuantizeLinear", [source, step, zero], f"{tensor}_q")
        self.add("DequantizeLinear", [f"{tensor}_q", step, zero], f"{tensor}_dq")
        if not self.half:
            return f"{tensor}_dq"
        return self.cast(f"{tensor}_dq", f"{tensor}_dqh", TensorProto.FLOAT16)

    def weight(self, name: str, shape: tuple[int, ...], axis: int | None = 0) -> str:
        """An int8 weight behind a DequantizeLinear, or a float one where axis is None."""
        if axis is None:
            values = self.random.standard_normal(shape) * 0.1
            return self.constant(name, values.astype(np.float16 if self.half else np.float32))
        self.constant(f"{name}_int8", self.random.integers(-127, 128, shape).astype(np.int8))
        self.constant(f"{name}_scale", np.full(shape[axis], 0.01, np.float32))
        self.constant(f"{name}_zero", np.zeros(shape[axis], np.int8))
        inputs = [f"{name}_int8", f"{name}_scale", f"{name}_zero"]
        self.add("DequantizeLinear", inputs, f"{name}_dq", axis=axis)
        if not self.half:
            return f"{name}_dq"
        return self.cast(f"{name}_dq", f"{name}_dqh", TensorProto.FLOAT16)

    def conv(
        self,
        tensor: str,
        name: str,
        shape: tuple[int, int, int, int],
        axis: int | None = 0,
        group: int = 1,
    ) -> str:
        weight = self.weight(f"{name}_w", shape, axis)
        pad = shape[2] // 2
        return self.add(
            "Conv", [tensor, weight], f"{name}_y", name=name, group=group, pads=[pad] * 4
        )

    def relu(self, tensor: str) -> str:
        return self.add("Relu", [tensor], f"{tensor}_relu")

    def save(self, path: Path, output: str, shape: list[int | str]) -> Path:
        if self.half:
            output = self.cast(output, "result", TensorProto.FLOAT)
        graph = helper.make_graph(
            self.nodes,
            "toy",
            [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
            self.tensors,
        )
        opset = helper.make_opsetid("", 19)
        onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=9), path)
        return path


@pytest.fixture
def qdq_graph() -> type[QdqGraph]:
    return QdqGraph


@pytest.fixture
def mixed_onnx(tmp_path: Path) -> Callable[..., Path]:
    """INT8 stem, residual with a shared Q/DQ, then one float convolution."""

    def make(half: bool = False, batch: int | str = 1) -> Path:
        graph = QdqGraph(half)
        stem = graph.relu(graph.conv(graph.qdq(graph.start()), "stem", (32, 3, 3, 3)))
        skip = graph.qdq(stem)
        body = graph.conv(skip, "body", (32, 32, 3, 3))
        total = graph.relu(graph.add("Add", [body, skip], "total"))
        head = graph.conv(total, "head", (16, 32, 1, 1), axis=None)
        return graph.save(tmp_path / "mixed.onnx", head, [batch, 3, 16, 16])

    return make
