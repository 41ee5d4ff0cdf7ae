"""Kernels from the engine inspector's JSON of classic TensorRT: `graph.json` of its engine explorer."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from reptrt.engines.inspection.kernel import Kernel, Product, Tensor, convolution
from reptrt.engines.inspection.layer_list_error import LayerListError, onnx_layers
from reptrt.engines.inspection.rtx_log import attention_product, matrix_product

_DTYPE = re.compile(
    r"Int8|UInt8|Int4|Int32|Int64|FP32|Float|FP16|Half|BF16|BFloat16|FP8|FP4|Bool", re.IGNORECASE
)
_DTYPE_NAMES = {
    "fp32": "Float", "float": "Float", "fp16": "Half", "half": "Half", "bf16": "BFloat16",
    "bfloat16": "BFloat16", "int8": "Int8", "uint8": "UInt8", "int4": "Int4", "int32": "Int32",
    "int64": "Int64", "fp8": "FP8", "fp4": "FP4", "bool": "Bool",
}  # fmt: skip
_MATRIX_KINDS = ("gemm", "matrix", "matmul", "fusion", "correlation")
_MOST_SIDES = 8  # TensorRT's own limit
_LARGEST_SIDE = 2**31 - 1


def parse_json(text: str) -> tuple[Kernel, ...]:
    """Return the layers of an engine, in execution order.

    Raises:
        LayerListError: it is no inspector JSON, or lists names only.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise LayerListError(f"no inspector JSON: {error}") from error
    layers = content.get("Layers") if isinstance(content, dict) else None
    if not isinstance(layers, list):
        raise LayerListError("no inspector JSON: it has no list 'Layers'")
    if any(isinstance(layer, str) for layer in layers):
        raise LayerListError("the inspector lists names only: build with DETAILED profiling")
    if not all(isinstance(layer, dict) for layer in layers):
        raise LayerListError("no inspector JSON: an entry of 'Layers' is no object")
    return tuple(_kernel(layer) for layer in layers)


def _kernel(layer: Mapping[str, object]) -> Kernel:
    name = str(layer.get("Name", ""))
    inputs, outputs = (_tensors(layer.get(key), name) for key in ("Inputs", "Outputs"))
    weights = tuple(
        Tensor(title, _dtype(str(described.get("Type"))), _dims([described.get("Count", 0)], name))
        for title in ("Weights", "Bias")
        for described in (layer.get(title, layer.get(f"Conv{title}")),)
        if isinstance(described, dict) and described.get("Count")
    )
    weights += _tensors(layer.get("Constants"), name)
    return Kernel(
        name=name,
        kind=str(layer.get("LayerType", "")),
        inputs=inputs,
        weights=weights,
        outputs=outputs,
        onnx_layers=onnx_layers(str(layer.get("Metadata", ""))),
        tactic=str(layer.get("TacticName", "")),
        product=_product(layer, name, inputs, weights, outputs),
    )


def _tensors(tensors: object, layer: str) -> tuple[Tensor, ...]:
    if tensors is None:
        return ()
    if not isinstance(tensors, list):
        raise LayerListError(f"layer '{layer[:80]}': {str(tensors)[:80]} is no list of tensors")
    if not all(isinstance(tensor, dict) for tensor in tensors):
        raise LayerListError(f"layer '{layer[:80]}': a tensor of it is no object")
    return tuple(_tensor(tensor, layer) for tensor in tensors)


def _tensor(tensor: Mapping[str, object], layer: str) -> Tensor:
    joined = str(tensor.get("Format/Datatype", ""))
    return Tensor(
        str(tensor.get("Name", "")),
        _dtype(str(tensor.get("Datatype", joined))),
        _dims(tensor["Dimensions"], layer) or (1,) if "Dimensions" in tensor else (),
        _dims(tensor.get("Strides", []), layer),
        str(tensor.get("Format", joined)),
    )


def _dims(sides: object, layer: str) -> tuple[int, ...]:
    """Sides of a shape.

    Raises:
        LayerListError: they are none.
    """
    if not isinstance(sides, list) or len(sides) > _MOST_SIDES:
        raise LayerListError(f"layer '{layer[:80]}': {str(sides)[:80]} is no shape")
    if not all(type(side) is int and -1 <= side <= _LARGEST_SIDE for side in sides):
        raise LayerListError(f"layer '{layer[:80]}': {str(sides)[:80]} is no shape")
    return tuple(sides)


def _product(
    layer: Mapping[str, object],
    name: str,
    inputs: tuple[Tensor, ...],
    weights: tuple[Tensor, ...],
    outputs: tuple[Tensor, ...],
) -> Product | None:
    """What the layer multiplies: a convolution says its window, a matrix product only its shapes."""
    if not inputs or not outputs or not inputs[0].dims or not outputs[0].dims:
        return None
    prefix = "Conv" if "ConvKernel" in layer else ""
    if f"{prefix}Kernel" in layer:
        return _convolution(layer, prefix, name, inputs[0].dims, outputs[0].dims)
    kind = f"{layer.get('LayerType', '')}".lower()
    if "mha" in name.lower() and len(inputs) > 1:
        return attention_product(inputs[0].dims, inputs[1].dims)
    if not any(word in kind for word in _MATRIX_KINDS):
        return None
    constant = max((tensor.elements for tensor in weights), default=0)
    return matrix_product(inputs[0].dims, outputs[0].dims, constant if constant > 1 else None)


def _convolution(
    layer: Mapping[str, object],
    prefix: str,
    name: str,
    source: tuple[int, ...],
    result: tuple[int, ...],
) -> Product:
    window = _dims(layer[f"{prefix}Kernel"], name)
    stride = _dims(layer.get(f"{prefix}Stride", [1] * len(window)), name)
    groups, channels = _dims(
        [layer.get(f"{prefix}Groups", 1), layer.get(f"{prefix}OutMaps", 0)], name
    )
    channels = channels or (result[1] if len(result) > 1 else 0)
    if (
        len(source) != len(window) + 2
        or len(stride) != len(window)
        or len(result) != len(source)
        or min((groups, channels, *stride, *window)) < 1
    ):
        raise LayerListError(f"layer '{name[:80]}': its kernel does not fit its shapes")
    spatial = result[2:]
    if prefix:  # its output is the pooled one
        spatial = tuple(
            _convolved(layer, prefix, name, axis, (side, window[axis], stride[axis]))
            for axis, side in enumerate(source[2:])
        )
    transposed = "deconv" in f"{layer.get('ParameterType', '')}{layer.get('LayerType', '')}".lower()
    return convolution(source, (source[0], channels, *spatial), window, groups, stride, transposed)


def _convolved(
    layer: Mapping[str, object], prefix: str, name: str, axis: int, sides: tuple[int, int, int]
) -> int:
    """Side of a convolution's output, from its input's, its window's and its stride."""
    side, window, stride = sides
    none = [0] * (axis + 1)
    before = _dims(layer.get(f"{prefix}PrePadding", none), name)
    after = _dims(layer.get(f"{prefix}PostPadding", none), name)
    dilation = _dims(layer.get(f"{prefix}Dilation", [1] * (axis + 1)), name)
    if min(len(before), len(after), len(dilation)) <= axis:
        raise LayerListError(f"layer '{name[:80]}': its padding does not fit its kernel")
    covered = dilation[axis] * (window - 1) + 1
    return (side + before[axis] + after[axis] - covered) // stride + 1


def _dtype(text: str) -> str:
    """Return the datatype named in `text`, such as "Row major linear FP16 format"."""
    found = _DTYPE.search(text)
    return _DTYPE_NAMES[found.group().lower()] if found else text
