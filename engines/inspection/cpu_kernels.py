"""The kernels that ONNX Runtime runs on a CPU: the nodes of the graph that it optimized for itself.

Its integer kernels are named QLinearConv, QGemm, MatMulIntegerToFloat and the like; a fused node keeps
the name of the layer it stands for, with a suffix.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import onnx

from reptrt.engines.inspection.kernels import Kernel, Tensor
from reptrt.engines.partial import temporary_folder
from reptrt.engines.runtime.runners import save_optimized

_SUFFIX = re.compile(r"(_token_\d+|_nhwc|_quant)+$")
_TO_FLOAT = ("DequantizeLinear", "MatMulIntegerToFloat", "Cast")
_QGEMM_INPUTS = 9  # the last two are the grid of its output, without which it returns floats
_DTYPES: dict[int, str] = {
    onnx.TensorProto.FLOAT: "Float",
    onnx.TensorProto.FLOAT16: "Half",
    onnx.TensorProto.INT8: "Int8",
    onnx.TensorProto.UINT8: "UInt8",
    onnx.TensorProto.INT32: "Int32",
    onnx.TensorProto.INT64: "Int64",
    onnx.TensorProto.BOOL: "Bool",
}


def read_cpu_kernels(path: Path) -> tuple[Kernel, ...]:
    """Return what ONNX Runtime makes of the file at `path` on this processor, in graph order.

    Raises:
        ModelFileError: ONNX Runtime does not load it.
    """
    with temporary_folder() as folder:
        optimized = Path(folder, "optimized.onnx")
        save_optimized(path, optimized)
        graph = onnx.load(optimized).graph
    constants = {
        tensor.name: _DTYPES.get(tensor.data_type, "Other") for tensor in graph.initializer
    }
    values = {
        value.name: _DTYPES.get(value.type.tensor_type.elem_type, "Other")
        for value in (*graph.input, *graph.value_info, *graph.output)
    }
    kernels = []
    for node in graph.node:
        for output in node.output:
            values.setdefault(output, _output_dtype(node, constants, values))
        kernels.append(
            Kernel(
                name=node.name,
                kind=node.op_type,
                inputs=_types(node.input, values),
                weights=_types(node.input, constants),
                outputs=_types(node.output, values),
                onnx_layers=(_SUFFIX.sub("", node.name),),
            )
        )
    return tuple(kernels)


def _output_dtype(node: onnx.NodeProto, constants: dict[str, str], values: dict[str, str]) -> str:
    """Type of what a fused node returns, where the optimized file does not say it."""
    if node.op_type in _TO_FLOAT or (node.op_type == "QGemm" and len(node.input) < _QGEMM_INPUTS):
        return "Float"
    zero_points = [constants[n] for n in node.input if constants.get(n) in ("Int8", "UInt8")]
    if node.op_type.startswith("Q") and zero_points:  # QuantizeLinear, QLinearConv, ...
        return zero_points[-1]
    return values.get(node.input[0], "Float") if node.input else "Float"


def _types(names: Sequence[str], known: dict[str, str]) -> tuple[Tensor, ...]:
    return tuple(Tensor(name, known[name]) for name in names if name in known)
