"""Read an ONNX model into the graph that fusion rules rewrite, for one batch size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # ships no stubs
from onnx import TensorProto

from reptrt.engines.fusion_rules.infer_sizes import Sizes, infer_sizes, sides
from reptrt.engines.fusion_rules.network import (
    DEQUANTIZE,
    FLOATS,
    FP8,
    QUANTIZE,
    Form,
    Network,
    Node,
    Tensor,
)

_DTYPES: dict[int, str] = {
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
    proto = _load(model)
    graph = proto.graph
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [_with_batch(one, batch) for one in graph.input if one.name not in constants]
    known = infer_sizes(proto, inputs)
    tensors = {name: _tensor(name, kind) for name, kind in known.types.items()}
    for name in known.constants:
        tensors[name] = replace(tensors[name], is_constant=True, values=known.values.get(name))
    nodes = list(_computing_nodes(known, tensors))
    names = tuple(value.name for value in inputs)
    return Network(nodes, tensors, names, tuple(value.name for value in graph.output))


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


def _tensor(name: str, kind: onnx.TypeProto) -> Tensor:
    dtype = _DTYPES.get(kind.tensor_type.elem_type, "Float")
    return Tensor(name, sides(kind), Form(dtype))


def _computing_nodes(known: Sizes, tensors: dict[str, Tensor]) -> Iterator[Node]:
    for order, proto in known.nodes:
        inputs = [name for name in proto.input if name]
        for name in (*inputs, *proto.output):
            if name and name not in tensors:  # of a foreign operator
                tensors[name] = Tensor(name, (), Form("Float"))
        if inputs and all(tensors[name].is_constant for name in inputs):
            quantized = proto.op_type == DEQUANTIZE or any(tensors[n].quantized for n in inputs)
            for name in proto.output:
                tensors[name] = _constant(tensors[name], quantized)
        else:
            yield _node(proto, inputs, order, tensors)


def _node(proto: onnx.NodeProto, inputs: list[str], order: int, tensors: dict[str, Tensor]) -> Node:
    is_pair = proto.op_type in (QUANTIZE, DEQUANTIZE)
    computed = inputs[:1] if is_pair else [n for n in inputs if not tensors[n].is_constant]
    weights = [] if is_pair else [n for n in inputs if tensors[n].is_constant]
    codes = ""
    if is_pair:
        name = proto.output[0] if proto.op_type == QUANTIZE else proto.input[0]
        codes = FP8 if tensors[name].dtype == FP8 else "Int8"
    return Node(
        op=proto.op_type,
        inputs=computed,
        outputs=[name for name in proto.output if name],
        parts=[proto.name or f"node_of_{proto.output[0]}"],
        order=order,
        weights=weights,
        attributes={attribute.name: attribute for attribute in proto.attribute},
        scale=_scale_key(tensors[inputs[1]]) if is_pair and len(inputs) > 1 else b"",
        codes=codes,
    )


def _scale_key(scale: Tensor) -> bytes:
    """What tells scales apart: their values, else their name."""
    if scale.values is None:
        return scale.name.encode()
    return scale.values.astype(np.float32).ravel().tobytes()


def _constant(tensor: Tensor, quantized: bool) -> Tensor:
    """A constant that is computed of weights; one behind a DQ is stored in Int8."""
    form = Form("Int8") if quantized and tensor.dtype in FLOATS else tensor.form
    return replace(tensor, form=form, is_constant=True, quantized=quantized)
