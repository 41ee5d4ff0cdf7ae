"""Dynamic quantization: grids that are computed from each input, at run time."""

from __future__ import annotations

REMEDY = (
    "quantize it with images: `requantize` starts from the float weights that the file implies, or"
    " give the float model"
)
_OPS = frozenset(
    (
        *("ConvInteger", "DynamicQuantizeLSTM", "DynamicQuantizeLinear", "DynamicQuantizeMatMul"),
        *("MatMulInteger", "MatMulIntegerToFloat", "QAttention"),
    )
)


def is_dynamic(op: str) -> bool:
    """Whether an operator is one of dynamic quantization, which TensorRT does not have."""
    return op in _OPS


def explain_dynamic(op: str, name: str) -> str:
    """Why a file with such a node has no INT8 engine as it is, in one line without a file name."""
    return (
        f"{op} {name!r} is dynamic quantization: its scales are"
        f" computed from each image, and TensorRT has no such layer: {REMEDY}"
    )
