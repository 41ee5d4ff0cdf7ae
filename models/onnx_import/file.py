"""Read a user's ONNX file; it is untrusted, so it is checked before any library computes with it.

What a file can claim is bounded: external data lies beside it, tensors are as large as their data, and
the graph has an order. Operators that nobody imports become islands; those that not even ONNX Runtime
has are refused here.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # ships no stubs
from onnx import TensorProto, inliner, numpy_helper

from reptrt.engines.foreign.border import reading
from reptrt.engines.foreign.contributed import write_contributed
from reptrt.engines.foreign.graphs import (
    GraphError,
    require_small_functions,
    sort_written_nodes,
)
from reptrt.models.onnx_import.code_borders import write_float_borders
from reptrt.models.onnx_import.data import (
    OnnxFileError,
    list_tensors,
    load_external_data,
    num_bytes,
)
from reptrt.models.onnx_import.file_inputs import FLOATS, OnnxFile, describe_inputs
from reptrt.models.onnx_import.plugins import cut_plugins
from reptrt.models.onnx_import.values import open_session

logger = logging.getLogger(__name__)

_MAX_BYTES = 2**31 - 1  # of a protobuf message
_MIN_OPSET = 7
_FIRST_IR_OF_WEIGHTS = 4  # before, weights must be inputs too, which runtimes do not ask for
_QUANTIZED = {
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul",
    "ConvInteger", "MatMulInteger",
}  # fmt: skip
_LAYERS = {
    "Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN", "BatchNormalization",
    "InstanceNormalization", "LayerNormalization", "GroupNormalization", "PRelu", "Einsum",
}  # fmt: skip
_NO_ARRAYS = {"value_string", "value_strings", "sparse_value"}
_RANDOM = {
    "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli",
    "Multinomial",
}  # fmt: skip


def require_float(file: OnnxFile) -> None:
    """Refuse a file with pairs or operators of quantization.

    Raises:
        OnnxFileError: it has one.
    """
    for index, node in enumerate(file.proto.graph.node):
        if node.op_type in _QUANTIZED:
            what = describe_node(node, index)
            raise OnnxFileError(f"{file.path}: {what} says that it is quantized already")


def read_onnx(path: Path) -> OnnxFile:
    """Read and check a file.

    Raises:
        OnnxFileError: One line: the file is missing, damaged, or reaches for data outside its folder.
    """
    with reading(path, OnnxFileError, "is not a valid ONNX model"):
        return _read_checked(path)


def _read_checked(path: Path) -> OnnxFile:
    proto = _parse(path)
    try:
        proto = _inline(proto)
        _check_opset(proto)
        _check_nodes(proto.graph)
        sha256 = load_external_data(path, proto)
        _check_tensors(proto.graph)
        sort_written_nodes(proto.graph)
        _check_order(proto.graph)
        write_contributed(proto)
        write_float_borders(proto)
        plugins = cut_plugins(proto)
        _require_input_shapes(proto.graph)
        _state_output_shapes(proto.graph)
        proto.ir_version = max(proto.ir_version, _FIRST_IR_OF_WEIGHTS)
        onnx.checker.check_model(proto)
        _check_domains(proto)
        if plugins:
            logger.warning(
                "%s: %s: the network ends in front of it, at %s",
                path, "; ".join(plugins), ", ".join(value.name for value in proto.graph.output),
            )  # fmt: skip
        return describe_inputs(path, proto, sha256)
    except OnnxFileError as error:
        raise error.at(path) from None


def _parse(path: Path) -> onnx.ModelProto:
    if not path.is_file():
        raise OnnxFileError(f"{path}: no such file; MODEL may be the path of an ONNX file")
    if path.stat().st_size > _MAX_BYTES:
        raise OnnxFileError(
            f"{path}: is larger than 2 GiB; save its weights beside it as external data"
        )
    try:
        proto = onnx.load_model_from_string(path.read_bytes())
    except DecodeError:
        raise OnnxFileError(f"{path}: is not an ONNX file, or is damaged") from None
    if not proto.graph.node:
        raise OnnxFileError(f"{path}: is not an ONNX file, or has no operators")
    return proto


def _check_opset(proto: onnx.ModelProto) -> None:
    versions = {entry.domain: entry.version for entry in proto.opset_import}
    version = versions.get("", versions.get("ai.onnx", 0))
    newest = onnx.defs.onnx_opset_version()
    if not _MIN_OPSET <= version <= newest:
        raise OnnxFileError(
            f"has opset {version}; {_MIN_OPSET} to {newest} can be imported: convert it with"
            " onnx.version_converter, or export it again with opset 17"
        )


def _inline(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Put the bodies of the file's own functions where they are called."""
    if not proto.functions:
        return proto
    try:
        require_small_functions(proto)
    except GraphError as error:
        raise OnnxFileError(str(error)) from None
    return inliner.inline_local_functions(proto)


def _require_input_shapes(graph: onnx.GraphProto) -> None:
    """Files that were cut behind an operator that ONNX does not know have inputs without a shape."""
    weights = {tensor.name for tensor in graph.initializer}
    for value in graph.input:
        tensor = value.type.tensor_type
        if value.name not in weights and tensor.elem_type and not tensor.HasField("shape"):
            raise OnnxFileError(
                f"its input {value.name!r} has no shape: state it, as"
                f" onnx.tools.update_model_dims.update_inputs_outputs_dims does"
            )


def _state_output_shapes(graph: onnx.GraphProto) -> None:
    """An output without a shape is legal for whoever runs a model, but not for ONNX's checker."""
    for value in graph.output:
        kind = value.type.WhichOneof("value")
        if kind is None:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
        if kind in (None, "tensor_type") and not value.type.tensor_type.HasField("shape"):
            value.type.tensor_type.shape.SetInParent()


def _check_domains(proto: onnx.ModelProto) -> None:
    """Operators that are not ONNX's must be ONNX Runtime's."""
    foreign = [node for node in proto.graph.node if node.domain not in ("", "ai.onnx")]
    if not foreign:
        return
    try:
        open_session(proto)
    except Exception as error:  # ONNX Runtime's own errors have no common class
        if "not a registered function" not in str(error):
            return  # another fault, which is said with more context when it is run
        known = next((n for n in foreign if f":{n.op_type}(" in str(error)), foreign[0])
        place = _first_read(proto.graph, known)
        where = f"behind it, at {place!r}" if place else "behind or before it"
        raise OnnxFileError(
            f"{known.op_type} {known.name!r} is an operator of {known.domain!r}, which ONNX Runtime"
            f" does not have: cut the model {where} (onnx.utils.extract_model)"
        ) from None


def _first_read(graph: onnx.GraphProto, node: onnx.NodeProto) -> str:
    """What the first layer behind `node` reads, a convolution if there is one; empty where there is none."""
    behind, found = set(node.output), dict[bool, str]()
    for other in graph.node:
        read = [name for name in other.input if name in behind]
        if read and other.op_type in _LAYERS:
            found.setdefault(other.op_type == "Conv", read[0])
        if read:
            behind.update(filter(None, other.output))
    return found.get(True, found.get(False, ""))


def _check_nodes(graph: onnx.GraphProto) -> None:
    for index, node in enumerate(graph.node):
        reason = _reason_to_refuse(node)
        if reason:
            raise OnnxFileError(f"{describe_node(node, index)} {reason}")
    if graph.sparse_initializer:
        raise OnnxFileError("holds sparse weights: export it with dense ones")


def describe_node(node: onnx.NodeProto, index: int) -> str:
    """How messages name a node."""
    return f"{node.op_type} {node.name!r}" if node.name else f"{node.op_type} (node {index})"


def _reason_to_refuse(node: onnx.NodeProto) -> str:
    if node.op_type == "Constant" and any(a.name in _NO_ARRAYS for a in node.attribute):
        return "holds text or sparse values, which no image model needs"
    if node.domain == "com.microsoft.nchwc":
        return (
            "is laid out for one processor, as ONNX Runtime's ORT_ENABLE_ALL writes it: take the file from"
            " before, or save it with ORT_ENABLE_EXTENDED"
        )
    if node.op_type in _RANDOM:
        return "draws random numbers: export the model in evaluation mode"
    return ""


def _check_tensors(graph: onnx.GraphProto) -> None:
    """Every constant has exactly the data that its shape says, and weights are finite."""
    names: set[str] = set()
    multiplied = {name for node in graph.node if node.op_type in _LAYERS for name in node.input}
    for tensor in graph.initializer:
        if not tensor.name or tensor.name in names:
            raise OnnxFileError(f"two weights have the name {tensor.name!r}")
        names.add(tensor.name)
    for tensor in list_tensors(graph):
        if tensor.data_type == TensorProto.STRING:
            raise OnnxFileError(f"constant {tensor.name!r} holds text, which no image model needs")
        needed = num_bytes(tensor)
        if tensor.HasField("raw_data") and len(tensor.raw_data) != needed:
            raise OnnxFileError(
                f"weight {tensor.name!r} of shape {list(tensor.dims)} needs {needed} bytes and has"
                f" {len(tensor.raw_data)}: the file is damaged"
            )
        if not tensor.HasField("raw_data"):
            _check_typed_length(tensor)
        values = numpy_helper.to_array(tensor)
        if tensor.data_type in FLOATS and not np.isfinite(values.astype(np.float32)).all():
            _check_finite(tensor, values, tensor.name in multiplied)


def _check_typed_length(tensor: onnx.TensorProto) -> None:
    stored = max(
        len(getattr(tensor, field))
        for field in ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")
    )
    if stored < math.prod(tensor.dims) // 2:  # 4-bit types and complex ones pack or spread
        raise OnnxFileError(
            f"weight {tensor.name!r} of shape {list(tensor.dims)} has {stored} values: the file is"
            " damaged"
        )


def _check_finite(
    tensor: onnx.TensorProto,
    values: np.ndarray[tuple[int, ...], np.dtype[np.generic]],
    is_weight: bool,
) -> None:
    """Bounds of a Clip and masks of attention may be infinite."""
    if is_weight or (values.ndim > 1 and np.isnan(values.astype(np.float64)).any()):
        raise OnnxFileError(f"weight {tensor.name!r} holds NaN, infinite or huge values")


def _check_order(graph: onnx.GraphProto) -> None:
    """Every value is made once, before it is read; every output is made."""
    known = {value.name for value in graph.input} | {t.name for t in graph.initializer} | {""}
    for index, node in enumerate(graph.node):
        for name in node.input:
            if name not in known:
                raise OnnxFileError(
                    f"{describe_node(node, index)} reads {name!r}, which nothing before it makes:"
                    " a weight or an operator is missing, or the graph runs in a circle"
                )
        for name in filter(None, node.output):
            if name in known:
                raise OnnxFileError(f"{describe_node(node, index)} makes {name!r} a second time")
            known.add(name)
    for value in graph.output:
        if value.name not in known or not value.name:
            raise OnnxFileError(f"its output {value.name!r} is made by no operator")
    outputs = [value.name for value in graph.output]
    if not outputs or len(set(outputs)) < len(outputs):
        raise OnnxFileError(f"must have outputs of different names, and has {outputs}")
