"""Small ONNX graphs as text, and what of their predicted layers can be compared."""

from __future__ import annotations

import re

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from reptrt.engines.fusion_rules import predict_kernels
from reptrt.engines.inspection.kernel import Kernel

_SCALES = {"s": 0.05, "s2": 0.07, "ws": 0.01}


def model(
    body: str, source: str = "float[1,32,8,8] x", result: str = "float[1,32,8,8] y"
) -> onnx.ModelProto:
    """The graph of `body`, in which `w3x32x64` is a weight [64, 32, 3, 3], `d3x32` a depthwise one.

    In it Q(x) and DQ(x) quantize with scale s, Q2 and DQ2 with scale s2, and DQW(w...) is a
    quantized weight; Q8(x) and DQ8(x) are FP8 of FP16 values. `half_w...` is a weight in FP16.
    """
    body = re.sub(r"\bQ8\((\w+)\)", r"QuantizeLinear(\1, half_s, z8)", body)
    body = re.sub(r"\bDQ8\((\w+)\)", r"DequantizeLinear(\1, half_s, z8)", body)
    for short, long in (
        ("DQW", "DequantizeLinear"),
        ("DQ", "DequantizeLinear"),
        ("Q", "QuantizeLinear"),
    ):
        scale = "ws" if short == "DQW" else "s"
        prefix = "i" if short == "DQW" else ""
        body = re.sub(rf"\b{short}2\((\w+)\)", rf"{long}(\1, s2, z)", body)
        body = re.sub(rf"\b{short}\((\w+)\)", rf"{long}({prefix}\1, {scale}, z)", body)
    text = f'<ir_version: 8, opset_import: ["": 19]>\ng ({source}) => ({result}) {{\n{body}\n}}'
    parsed = onnx.parser.parse_model(text)
    used = {name for node in parsed.graph.node for name in node.input}
    for name in sorted(used):
        if values := _constant(name):
            parsed.graph.initializer.append(numpy_helper.from_array(values[0], name))
    if "z8" in used:
        parsed.graph.initializer.append(helper.make_tensor("z8", TensorProto.FLOAT8E4M3FN, [], [0]))
    return parsed


def _constant(name: str) -> list[np.ndarray]:
    if name in _SCALES:
        return [np.float32(_SCALES[name])]
    if name == "half_s":
        return [np.float16(0.05)]
    if name == "z":
        return [np.int8(0)]
    found = re.fullmatch(r"(i|half_)?([wdm])(\d+)x(\d+)(?:x(\d+))?", name)
    if found is None:
        return []
    kind, first, second, third = found[2], int(found[3]), int(found[4]), int(found[5] or 0)
    shapes = {
        "w": (third, second, first, first),
        "d": (second, 1, first, first),
        "m": (first, second),
    }
    dtype = {"i": np.int8, "half_": np.float16, None: np.float32}[found[1]]
    return [np.zeros(shapes[kind], dtype)]


def layers(
    body: str,
    *,
    source: str = "float[1,32,8,8] x",
    result: str = "float[1,32,8,8] y",
    gpu: tuple[int, int] = (8, 0),
) -> list[str]:
    """The predicted layers of `body` that run a kernel, as "kind: reads -> writes"."""
    kernels = predict_kernels(model(body, source, result), compute_capability=gpu)
    return [line(kernel) for kernel in kernels if kernel.kind != "NoOp"]


def line(kernel: Kernel) -> str:
    """Kind and types of a layer."""
    read, written = (
        " ".join(tensor.dtype for tensor in group) for group in (kernel.inputs, kernel.outputs)
    )
    return f"{kernel.kind}: {read} -> {written}"
