"""The inputs and outputs of an ONNX file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import onnx

from reptrt.engines.tensor_spec import Tensor


def read_tensors(onnx_path: Path) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return inputs and outputs of the main graph, in order; weights are no inputs."""
    graph = onnx.load(str(onnx_path), load_external_data=False).graph
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    return _tensors(inputs), _tensors(graph.output)


def _tensors(values: Iterable[onnx.ValueInfoProto]) -> tuple[Tensor, ...]:
    return tuple(
        Tensor(
            value.name,
            onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name,
            tuple(
                size.dim_value if size.HasField("dim_value") else -1
                for size in value.type.tensor_type.shape.dim
            ),
        )
        for value in values
    )
