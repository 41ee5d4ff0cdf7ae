"""Kernels of a typed FP16+INT8 engine that compute in FP32 though nothing asks for it.

These Float tensors are needed: the graph's inputs and outputs, which are FP32 by contract; what an INT8
product writes, which TensorRT-RTX 1.7 does in Float, its sum being an int32 times a float scale; and
what passes between two kernels that share one LayerNormalization, which ONNX computes in float
(`stash_type` 1), or one QuantizeLinear, whose scale is float. Constants are left out: scales are Float.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx

from reptrt.engines.inspection.kernels import Kernel

FLOAT_OPERATORS = ("LayerNormalization", "QuantizeLinear")


def needless_float_kernels(kernels: Sequence[Kernel], path: Path) -> list[str]:
    """Names of those kernels of the engine that was built from `path`."""
    graph = onnx.load(path).graph
    floats = {node.name for node in graph.node if node.op_type in FLOAT_OPERATORS}
    needed = {output.name for output in graph.output}

    def is_inside_operator(tensor: str, writer: Kernel) -> bool:
        shared = floats.intersection(writer.onnx_layers)
        readers = [kernel for kernel in kernels if tensor in {one.name for one in kernel.inputs}]
        return bool(readers) and all(shared.intersection(one.onnx_layers) for one in readers)

    def is_needless(kernel: Kernel) -> bool:
        if kernel.is_int8:
            return False
        if kernel.multiplies_weights and "Float" in {one.dtype for one in kernel.inputs}:
            return True
        written = [one.name for one in kernel.outputs if one.dtype == "Float"]
        return any(name not in needed and not is_inside_operator(name, kernel) for name in written)

    return [kernel.name for kernel in kernels if is_needless(kernel)]
