"""Sizes and types of all tensors of a graph, in one pass, and what it computes of sizes.

ONNX's own inference of a whole graph does not compute what stands between Shape and Reshape, on
which later sizes depend; here each node is inferred, or computed, when its inputs are known.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from reptrt.engines.foreign.growth import BOUNDED

LARGEST_VALUES = 4096  # elements: scales, shapes and bounds, not weights
_KEPT = frozenset({"QuantizeLinear", "DequantizeLinear", "If", "Loop", "Scan"})
_ONNX_DOMAINS = ("", "ai.onnx")


@dataclass
class Sizes:
    """What is known of the tensors of a graph.

    Attributes:
        types: of each tensor with one; sizes may be open.
        constants: initializers, and what was computed of small ones.
        values: of small constants.
        nodes: those that were not computed, with their position in the file.
    """

    types: dict[str, onnx.TypeProto] = field(default_factory=dict)
    constants: set[str] = field(default_factory=set)
    values: dict[str, np.ndarray] = field(default_factory=dict)
    nodes: list[tuple[int, onnx.NodeProto]] = field(default_factory=list)


def infer_sizes(model: onnx.ModelProto, inputs: Iterable[onnx.ValueInfoProto]) -> Sizes:
    """Infer the main graph of `model` for `inputs`, in time linear in its nodes."""
    known = Sizes()
    for value in inputs:
        known.types[value.name] = value.type
    for tensor in model.graph.initializer:
        kind = onnx.helper.make_tensor_type_proto(tensor.data_type, tuple(tensor.dims))
        known.types[tensor.name] = kind
        known.constants.add(tensor.name)
        if not tensor.external_data and math.prod(tensor.dims) <= LARGEST_VALUES:
            known.values[tensor.name] = numpy_helper.to_array(tensor)
    opsets = list(model.opset_import)
    version = next((one.version for one in opsets if one.domain in _ONNX_DOMAINS), 1)
    for order, node in enumerate(model.graph.node):
        inferred = _infer(node, known, version, opsets)
        results = _compute(node, known, version) if _is_small(node, inferred) else None
        if results is None:
            known.nodes.append((order, node))
            known.types.update(inferred)
            if node.output[0] not in known.types and len(node.input) > 1:
                _infer_pair(node, known)
            continue
        for name, result in zip(node.output, results, strict=False):
            known.constants.add(name)
            if result.size <= LARGEST_VALUES:
                known.values[name] = result
            dtype = onnx.helper.np_dtype_to_tensor_dtype(result.dtype)
            known.types[name] = onnx.helper.make_tensor_type_proto(dtype, result.shape)
    return known


def _is_small(node: onnx.NodeProto, inferred: Mapping[str, onnx.TypeProto]) -> bool:
    """Whether the results of `node` are small; where nobody can tell, as small as what it reads."""
    made = [inferred.get(name) for name in node.output if name]
    shapes = [sides(kind) for kind in made if kind and kind.tensor_type.HasField("shape")]
    if len(shapes) < len(made) or any(-1 in shape for shape in shapes):
        return node.op_type == "Constant" or node.op_type in BOUNDED
    return all(math.prod(shape) <= LARGEST_VALUES for shape in shapes)


def sides(kind: onnx.TypeProto) -> tuple[int, ...]:
    """The sizes of a tensor type, -1 where one is open; () of scalars, and where all are."""
    shape = kind.tensor_type.shape
    return tuple(size.dim_value if size.HasField("dim_value") else -1 for size in shape.dim)


def _compute(node: onnx.NodeProto, known: Sizes, version: int) -> list[np.ndarray] | None:
    """What `node` computes, or None where its inputs are no small constants."""
    if node.op_type in _KEPT or node.domain not in _ONNX_DOMAINS:
        return None
    inputs = [name for name in node.input if name]
    if node.op_type == "Shape":
        return _shape(node, known)
    if not inputs:
        return _constant(node)
    if any(name not in known.values for name in inputs):
        return None
    try:
        values = {name: known.values[name] for name in inputs}
        results = ReferenceEvaluator(_model_of(node, values, version)).run(None, values)
    except Exception:  # an operator or a type that ONNX's own evaluator has not
        return None
    found = [np.asarray(result) for result in results]
    return found if all(result.size <= LARGEST_VALUES for result in found) else None


def _constant(node: onnx.NodeProto) -> list[np.ndarray] | None:
    if node.op_type != "Constant":
        return None
    value = onnx.helper.get_attribute_value(node.attribute[0])
    if isinstance(value, onnx.TensorProto):
        return [numpy_helper.to_array(value)]
    kinds = {"value_int": np.int64, "value_ints": np.int64, "value_float": np.float32}
    dtype = kinds.get(node.attribute[0].name, np.float32)
    return None if isinstance(value, (bytes, onnx.SparseTensorProto)) else [np.array(value, dtype)]


def _model_of(node: onnx.NodeProto, values: Iterable[str], version: int) -> onnx.ModelProto:
    """A model of `node` alone: only a model says which version of an operator it means."""
    inputs, outputs = (
        [onnx.ValueInfoProto(name=name) for name in names]
        for names in (values, filter(None, node.output))
    )
    graph = onnx.helper.make_graph([node], "one", inputs, outputs)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", version)])


def _shape(node: onnx.NodeProto, known: Sizes) -> list[np.ndarray] | None:
    kind = known.types.get(node.input[0])
    if kind is None or not kind.tensor_type.HasField("shape"):
        return None
    limits = {attribute.name: attribute.i for attribute in node.attribute}
    size = sides(kind)[limits.get("start", 0) : limits.get("end")]
    return None if -1 in size else [np.array(size, np.int64)]


def _infer(
    node: onnx.NodeProto, known: Sizes, version: int, opsets: list[onnx.OperatorSetIdProto]
) -> dict[str, onnx.TypeProto]:
    """Types of the outputs of `node`, as far as its inputs tell them."""
    inputs = [name for name in node.input if name]
    types = {name: known.types[name] for name in inputs if name in known.types}
    data = {
        name: numpy_helper.from_array(known.values[name]) for name in inputs if name in known.values
    }
    domain = "" if node.domain == "ai.onnx" else node.domain
    with contextlib.suppress(Exception):  # a foreign operator, or one that does not fit: unknown
        schema = onnx.defs.get_schema(node.op_type, version, domain)
        return dict(
            onnx.shape_inference.infer_node_outputs(schema, node, types, data, opset_imports=opsets)
        )
    return {}


def _infer_pair(node: onnx.NodeProto, known: Sizes) -> None:
    """Q and DQ whose scale has another type than the data: no valid ONNX, but TensorRT reads it."""
    data, scale = known.types.get(node.input[0]), known.types.get(node.input[1])
    if data is None or scale is None or node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
        return
    dtype = scale.tensor_type.elem_type
    if node.op_type == "QuantizeLinear":
        dtype = onnx.TensorProto.INT8
    known.types[node.output[0]] = onnx.helper.make_tensor_type_proto(dtype, sides(data))
