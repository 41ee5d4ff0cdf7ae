"""Shapes and values of the tensors of an ONNX graph, as ONNX and ONNX Runtime see them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from reptrt.engines.foreign.limits import MAX_TENSOR_BYTES
from reptrt.engines.foreign.text import one_line
from reptrt.models.inputs import Feed
from reptrt.models.onnx_import.data import OnnxFileError

Array = NDArray[Any]
BATCH = "N"
"""Name of the first side of what is batched, while it is open."""
_FLOOR = 1e-3
"""Least range of a tensor: what stays below it is background, whose digits mean nothing."""


def infer_shapes(graph: gs.Graph, batch_size: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors for a batch of `batch_size`, as far as ONNX can tell.

    Raises:
        OnnxFileError: shapes contradict each other, or a tensor would have more than 1 GiB.
    """
    proto = gs.export_onnx(graph)
    for value in proto.graph.input:
        for side in value.type.tensor_type.shape.dim:
            if side.dim_param == BATCH:
                side.dim_value = batch_size
    try:
        proto = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError) as error:
        raise OnnxFileError(f"its shapes contradict each other: {one_line(error)}") from None
    shapes = {}
    for value in [*proto.graph.value_info, *proto.graph.output, *proto.graph.input]:
        sides = [d.dim_value for d in value.type.tensor_type.shape.dim if d.HasField("dim_value")]
        if 4 * math.prod(sides) > MAX_TENSOR_BYTES:
            raise OnnxFileError(f"tensor {value.name!r} of shape {sides} would need over 1 GiB")
        stated = value.type.tensor_type.HasField("shape")
        if stated and len(sides) == len(value.type.tensor_type.shape.dim):
            shapes[value.name] = tuple(sides)
    return shapes


def run_onnx(
    proto: onnx.ModelProto, names: Sequence[str], feeds: Sequence[Feed]
) -> list[dict[str, Array]]:
    """Values of the tensors `names` for each of `feeds`, by ONNX Runtime without optimizations.

    Raises:
        OnnxFileError: it cannot run the graph.
    """
    present = {value.name for value in proto.graph.output}
    marked = onnx.ModelProto()
    marked.CopyFrom(proto)
    marked.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in present)
    for value in marked.graph.input:  # sizes that stay open are tried with others too
        for side in value.type.tensor_type.shape.dim:
            side.Clear()
    with _explained():
        session = open_session(marked)
        return [
            dict(zip(names, session.run(list(names), dict(feed)), strict=True)) for feed in feeds
        ]


def run_onnx_feeds(proto: onnx.ModelProto, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Outputs of a model for named inputs; errors as in `run_onnx`."""
    names = [value.name for value in proto.graph.output]
    with _explained():
        return dict(zip(names, open_session(proto).run(names, dict(feeds)), strict=True))


def run_operator(
    op_type: str, inputs: Mapping[str, Array | None], attrs: Mapping[str, Any], opset: int
) -> Array:
    """What one operator with one output makes; errors as in `run_onnx`.

    Args:
        op_type: its name.
        inputs: in its order; None for one that is left out.
        attrs: of the node.
        opset: that the node is of.
    """
    values = {name: value for name, value in inputs.items() if value is not None}
    read = [name if name in values else "" for name in inputs]
    node = onnx.helper.make_node(op_type, read, ["y"], **attrs)
    stated = [
        onnx.helper.make_tensor_value_info(
            name, onnx.helper.np_dtype_to_tensor_dtype(value.dtype), value.shape
        )
        for name, value in values.items()
    ]
    made = [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)]
    graph = onnx.helper.make_graph([node], op_type, stated, made)
    ids = [onnx.helper.make_opsetid("", opset)]
    return run_onnx_feeds(onnx.helper.make_model(graph, opset_imports=ids, ir_version=8), values)[
        "y"
    ]


def open_session(proto: onnx.ModelProto) -> Any:
    """A session of ONNX Runtime without optimizations, on the CPU."""
    import onnxruntime  # here: importing it starts a thread, which no process that forks may have

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(
        proto.SerializeToString(),
        options,
        providers=["CPUExecutionProvider"],
        enable_fallback=False,  # to the same provider; it prints what failed
    )


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # ONNX Runtime's own errors have no common class
        reason = one_line(str(error).rpartition(" : ")[2] or error)
        raise OnnxFileError(f"ONNX Runtime cannot run it: {reason}") from None


def range_error(expected: Array, actual: Array) -> float:
    """Largest |actual - expected| over the range of `expected`; infinite where shapes differ."""
    if expected.shape != actual.shape:
        return float("inf")
    reference, found = expected.astype(np.float64), actual.astype(np.float64)
    same = (reference == found) | (np.isnan(reference) & np.isnan(found))  # infinities too
    with np.errstate(invalid="ignore"):
        distance = float(np.where(same, 0.0, np.abs(found - reference)).max(initial=0))
    finite = np.abs(reference[np.isfinite(reference)]).max(initial=0)
    return distance / max(float(finite), _FLOOR) if np.isfinite(distance) else float("inf")
