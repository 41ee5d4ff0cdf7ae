"""Read an ONNX model into the graph that fusion rules rewrite, for one batch size."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # ships no stubs
from onnx import TensorProto, numpy_helper

from reptrt.engines.fusion_rules.network import (
    DEQUANTIZE,
    FLOATS,
    QUANTIZE,
    Form,
    Network,
    Node,
    Tensor,
)

_IR_VERSION = 8  # from 4 on, initializers need not be inputs
_LARGEST_VALUES = 4096  # elements: scales, shapes and bounds, not weights
_DTYPES = {
    TensorProto.FLOAT: "Float",
    TensorProto.FLOAT16: "Half",
    TensorProto.BFLOAT16: "BFloat16",
    TensorProto.INT8: "Int8",
    TensorProto.UINT8: "UInt8",
    TensorProto.INT32: "Int32",
    TensorProto.INT64: "Int64",
    TensorProto.BOOL: "Bool",
    TensorProto.FLOAT8E4M3FN: "FP8",
}


class UnpredictableModelError(ValueError):
    """The model says too little to predict its engine."""

    exit_code = 2


def read_network(model: onnx.ModelProto | Path, batch: int | None) -> Network:
    """Read `model`; nodes that compute on constants only become constants.

    Args:
        model: with static sizes but for the batch, the first axis of every input.
        batch: size of the first axis; None keeps what the file says, 1 where it is open.

    Raises:
        UnpredictableModelError: not ONNX, or another size than the batch is open.
    """
    graph = _infer_shapes(_load(model), batch)
    tensors = _tensors(graph)
    constants = {tensor.name for tensor in graph.initializer}
    for value in graph.input:
        if value.name.startswith(_WEIGHT_PREFIX):
            constants.add(value.name.removeprefix(_WEIGHT_PREFIX))
    for name in constants:
        tensors[name] = _constant(tensors[name], quantized=False)
    nodes = list(_computing_nodes(graph, tensors))
    inputs = tuple(value.name for value in graph.input if value.name in tensors)
    inputs = tuple(name for name in inputs if not tensors[name].is_constant)
    outputs = tuple(value.name for value in graph.output)
    return Network(nodes, tensors, inputs, outputs)


_WEIGHT_PREFIX = "weight of the model: "


def _load(model: onnx.ModelProto | Path) -> onnx.ModelProto:
    if isinstance(model, onnx.ModelProto):
        return model
    try:
        proto = onnx.load(str(model), load_external_data=False)
    except FileNotFoundError:
        raise UnpredictableModelError(f"{model}: no such file") from None
    except (DecodeError, ValueError, OSError):
        raise UnpredictableModelError(
            f"{model}: not an ONNX file, or damaged: export the model again"
        ) from None
    if not proto.graph.node:
        raise UnpredictableModelError(f"{model}: it has no operators: export the model again")
    return proto


def _infer_shapes(model: onnx.ModelProto, batch: int | None) -> onnx.GraphProto:
    """Return a graph without large weights, whose tensors all have a type and sizes."""
    light = onnx.ModelProto(ir_version=_IR_VERSION, opset_import=model.opset_import)
    light.graph.name = model.graph.name or "graph"
    light.graph.node.extend(model.graph.node)
    weights = {tensor.name for tensor in model.graph.initializer}
    for value in model.graph.input:
        if value.name not in weights:
            light.graph.input.append(_with_batch(value, batch))
    for tensor in model.graph.initializer:
        if not tensor.external_data and int(np.prod(tensor.dims)) <= _LARGEST_VALUES:
            light.graph.initializer.append(tensor)
        else:  # a graph input of that name has its type, and not its values
            light.graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    for value in model.graph.output:
        kept = light.graph.output.add(name=value.name)
        kept.type.tensor_type.elem_type = value.type.tensor_type.elem_type
    try:
        inferred = onnx.shape_inference.infer_shapes(light, data_prop=True).graph
    except Exception as error:  # onnx raises its own kinds, and RuntimeError
        reason = " ".join(str(error).split())[:200]
        raise UnpredictableModelError(f"the sizes of the model do not fit: {reason}") from None
    for value in inferred.input:
        if value.name in weights:
            value.name = _WEIGHT_PREFIX + value.name
    return inferred


def _with_batch(value: onnx.ValueInfoProto, batch: int | None) -> onnx.ValueInfoProto:
    fixed = onnx.ValueInfoProto()
    fixed.CopyFrom(value)
    for axis, size in enumerate(fixed.type.tensor_type.shape.dim):
        is_open = not size.HasField("dim_value") or size.dim_value <= 0
        if axis == 0 and (is_open or batch is not None):
            size.dim_value = batch or 1
        elif is_open:
            raise UnpredictableModelError(
                f"input '{value.name}' has no size along axis {axis}: only the batch, axis 0, may "
                "be open; export the model for one size"
            )
    return fixed


def _tensors(graph: onnx.GraphProto) -> dict[str, Tensor]:
    tensors = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        name = value.name.removeprefix(_WEIGHT_PREFIX)
        kind = value.type.tensor_type
        dims = tuple(
            size.dim_value if size.HasField("dim_value") else -1 for size in kind.shape.dim
        )
        tensors[name] = Tensor(name, dims, Form(_DTYPES.get(kind.elem_type, "Float")))
    for constant in graph.initializer:
        form = Form(_DTYPES.get(constant.data_type, "Float"))
        values = numpy_helper.to_array(constant)
        tensors[constant.name] = Tensor(constant.name, tuple(constant.dims), form, values=values)
    return tensors


def _computing_nodes(graph: onnx.GraphProto, tensors: dict[str, Tensor]) -> Iterator[Node]:
    for order, proto in enumerate(graph.node):
        for name in proto.output:
            if name and name not in tensors:  # no shape inference for a foreign operator
                tensors[name] = Tensor(name, (), Form("Float"))
        inputs = [name for name in proto.input if name]
        if proto.op_type in ("Constant", "Shape") or (
            inputs and all(tensors[name].is_constant for name in inputs)
        ):
            _fold(proto, inputs, tensors)
            continue
        yield _node(proto, inputs, order, tensors)


def _fold(proto: onnx.NodeProto, inputs: list[str], tensors: dict[str, Tensor]) -> None:
    quantized = proto.op_type == DEQUANTIZE or any(tensors[name].quantized for name in inputs)
    for name in proto.output:
        tensors[name] = _constant(tensors[name], quantized)
    if proto.op_type == "Constant":
        name, attribute = proto.output[0], proto.attribute[0]
        value = onnx.helper.get_attribute_value(attribute)
        if isinstance(value, onnx.TensorProto):
            value = numpy_helper.to_array(value)
        elif attribute.name.startswith(("value_int", "value_float")):
            value = np.asarray(value)
        else:
            return
        tensors[name] = _constant(tensors[name], False, value)


def _node(proto: onnx.NodeProto, inputs: list[str], order: int, tensors: dict[str, Tensor]) -> Node:
    is_pair = proto.op_type in (QUANTIZE, DEQUANTIZE)
    computed = inputs[:1] if is_pair else [n for n in inputs if not tensors[n].is_constant]
    weights = [] if is_pair else [n for n in inputs if tensors[n].is_constant]
    return Node(
        op=proto.op_type,
        inputs=computed,
        outputs=[name for name in proto.output if name],
        parts=[proto.name or f"node_of_{proto.output[0]}"],
        order=order,
        weights=weights,
        attributes={attribute.name: attribute for attribute in proto.attribute},
        scale=_scale_key(tensors[inputs[1]]) if is_pair and len(inputs) > 1 else b"",
    )


def _scale_key(scale: Tensor) -> bytes:
    """What tells scales apart: their values, else their name."""
    if scale.values is None:
        return scale.name.encode()
    return scale.values.astype(np.float32).ravel().tobytes()


def _constant(tensor: Tensor, quantized: bool, values: np.ndarray | None = None) -> Tensor:
    form = Form("Int8") if quantized and tensor.dtype in FLOATS else tensor.form
    kept = tensor.values if values is None else values
    return Tensor(
        tensor.name, tensor.dims, form, is_constant=True, quantized=quantized, values=kept
    )
