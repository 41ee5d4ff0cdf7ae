"""Open an ONNX file to lint it: checked, with shapes, and without its large weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # ships no stubs
from onnx import external_data_helper

from reptrt.engines.foreign.border import read_bytes, reading
from reptrt.engines.foreign.graphs import (
    all_nodes,
    require_data_beside,
    require_small_functions,
    write_for_checker,
)
from reptrt.engines.foreign.limits import MAX_MODEL_BYTES
from reptrt.engines.foreign.text import one_line
from reptrt.engines.lint.base import LintedModel

# Scales, zero points and pads are smaller, and no rule looks at the values of a weight.
_LARGEST_READ = 1 << 20


class LintError(ValueError):
    """A file that is no ONNX model, or that has no room for the repaired one."""

    exit_code = 2


def read_model(path: Path) -> LintedModel:
    """Read and check the file.

    Raises:
        LintError: It is missing, damaged, no valid ONNX, or its external data is not beside it.
    """
    proto = _parse(path)
    try:
        require_small_functions(proto)
        require_data_beside(proto, path)
        onnx.checker.check_model(proto if write_for_checker(proto) else str(path))
        _load_small_constants(proto, path.parent)
        inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
        graph = gs.import_onnx(inferred)
    except (
        *(onnx.checker.ValidationError, onnx.shape_inference.InferenceError),
        *(OSError, ValueError, TypeError, KeyError, RuntimeError),
    ) as error:
        raise LintError(f"{path}: not a valid ONNX model: {one_line(error, 400)}") from None
    nodes = list(all_nodes(graph))
    for node in nodes:
        _name_constant(node)
    return LintedModel(path, inferred, graph, tuple(node for node in nodes if node.outputs))


def _parse(path: Path) -> onnx.ModelProto:
    if not path.exists():
        raise LintError(f"{path}: no such file")
    with reading(path, LintError, "cannot be read"):
        content = read_bytes(path, MAX_MODEL_BYTES, LintError)
    try:
        proto = onnx.load_model_from_string(content)
    except (DecodeError, ValueError):
        raise LintError(f"{path}: not an ONNX file, or damaged: export the model again") from None
    if not proto.graph.node:
        raise LintError(f"{path}: not an ONNX file, or it has no operators: export the model again")
    return proto


def _load_small_constants(proto: onnx.ModelProto, folder: Path) -> None:
    for tensor in proto.graph.initializer:
        lengths = [int(entry.value) for entry in tensor.external_data if entry.key == "length"]
        if lengths and lengths[0] <= _LARGEST_READ:
            external_data_helper.load_external_data_for_tensor(tensor, str(folder))
            tensor.data_location = onnx.TensorProto.DEFAULT
            del tensor.external_data[:]


def _name_constant(node: gs.Node) -> None:
    """Turn a Constant node into an initializer, as rules expect constants."""
    for key, value in node.attrs.items() if node.op == "Constant" else ():
        values = value.values if isinstance(value, gs.Constant) else np.asarray(value)
        if isinstance(value, gs.Constant) or key.startswith(("value_float", "value_int")):
            output = node.outputs[0]
            node.outputs.clear()
            output.to_constant(values)
            return
