"""Rules on the codes of Q/DQ nodes: their type, zero point and scale.

"Seen" is in the ONNX parser of TensorRT-RTX 1.7.1, which is TensorRT's.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from reptrt.engines.lint.base import LintedModel, Rule, Severity, Site
from reptrt.engines.surgery.qdq import (
    DEQUANTIZE,
    QUANTIZE,
    constant_at,
    has_blocks,
    input_at,
    producer,
)
from reptrt.engines.surgery.repair.dequantize_bias import DequantizeBias
from reptrt.engines.surgery.repair.floor_scales import FloorScales
from reptrt.engines.surgery.repair.recentre_activations import RecentreActivations
from reptrt.engines.surgery.repair.recentre_weights import RecentreWeights
from reptrt.engines.surgery.repair.state_zero_points import StateZeroPoints

_WIDE = ("int32", "int16", "uint16")
_TAKEN = {
    "int8": "",
    "uint8": "",
    "float8_e4m3fn": "FP8 needs compute capability 8.9",
    "int4": "INT4 is for weights of matrix products only",
    "float4_e2m1fn": "FP4 needs a Blackwell GPU",
}
_SYMMETRIC = "quantize with symmetric INT8 (ONNX Runtime: ActivationSymmetric, WeightSymmetric)"


def grids(model: LintedModel) -> Iterator[gs.Node]:
    """Each grid once: every QuantizeLinear, and every DequantizeLinear that undoes none."""
    yield from model.nodes_of(QUANTIZE)
    for node in model.nodes_of(DEQUANTIZE):
        writer = producer(node.inputs[0])
        if writer is None or writer.op != QUANTIZE:
            yield node


def code_type(node: gs.Node) -> str:
    """The type of the codes of a Q/DQ node, as NumPy names it; empty where unknown."""
    zero_point = input_at(node, 2)
    if zero_point is not None and zero_point.dtype is not None:
        return _type_name(zero_point.dtype)
    if node.op == QUANTIZE:
        return _type_name(int(node.attrs.get("output_dtype", 0)) or onnx.TensorProto.UINT8)
    return "" if node.inputs[0].dtype is None else _type_name(node.inputs[0].dtype)


def _type_name(dtype: object) -> str:
    if isinstance(dtype, int):
        return str(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(dtype)).name)
    return str(np.dtype(dtype).name)  # type: ignore[call-overload]  # NumPy's or ml_dtypes' type


class ZeroPoint(Rule):
    """Seen: "Non-zero zero point is not supported". NVIDIA/TensorRT#2774, onnxruntime#14229."""

    name = "zero-point"
    severity = Severity.ERROR
    reason = "TensorRT 10 and 11 refuse a zero point that is not 0"
    remedy = _SYMMETRIC
    repaired_by = (RecentreWeights, RecentreActivations)

    def find(self, model: LintedModel) -> Iterator[Site]:
        """Yield the 8-bit grids that are not symmetric around code 0."""
        for node in grids(model):
            zero_point = constant_at(node, 2)
            if code_type(node) in {"int8", "uint8"} and zero_point is not None and zero_point.any():
                yield model.site(node, f"zero point {zero_point.flat[np.argmax(zero_point != 0)]}")


class Uint8(Rule):
    """Seen: parses, with a warning or (zero point left out) without, and is taken as INT8."""

    name = "uint8"
    severity = Severity.ERROR
    reason = "TensorRT 10 and 11 take uint8 for int8, so that codes above 127 are lost in silence"
    remedy = "quantize with signed INT8 and write its zero point"
    repaired_by = (StateZeroPoints, RecentreActivations, RecentreWeights)

    def find(self, model: LintedModel) -> Iterator[Site]:
        """Yield the grids of uint8 that `ZeroPoint` does not name."""
        for node in grids(model):
            zero_point = constant_at(node, 2)
            if code_type(node) == "uint8" and (zero_point is None or not zero_point.any()):
                yield model.site(
                    node, "" if zero_point is not None else "by its missing zero point"
                )


class IntegerBias(Rule):
    """Seen: "input has type Int32 but must have type FP8, FP4, Int4, Int8". onnx-tensorrt#850."""

    name = "integer-bias"
    severity = Severity.ERROR
    reason = "TensorRT 10 and 11 refuse a DequantizeLinear of more than 8 bits, as biases have it"
    remedy = "keep biases float (ONNX Runtime: QuantizeBias=False)"
    repaired_by = (DequantizeBias,)

    def find(self, model: LintedModel) -> Iterator[Site]:
        """Yield each DequantizeLinear of wide constants."""
        for node in model.nodes_of(DEQUANTIZE):
            if isinstance(node.inputs[0], gs.Constant) and code_type(node) in _WIDE:
                yield model.site(node, code_type(node))


class CodeType(Rule):
    """Seen: INT16, UINT16, UINT4 and FP8 E5M2 are all refused."""

    name = "code-type"
    severity = Severity.ERROR
    reason = "TensorRT 10 and 11 know the codes INT8, INT4, FP8 E4M3 and FP4 E2M1 only"
    remedy = "quantize with INT8 activations and weights"

    def find(self, model: LintedModel) -> Iterator[Site]:
        """Yield the grids of other types."""
        for node in grids(model):
            is_bias = isinstance(node.inputs[0], gs.Constant) and code_type(node) in _WIDE
            if code_type(node) and code_type(node) not in _TAKEN and not is_bias:
                yield model.site(node, code_type(node))


class LowBits(Rule):
    """NVIDIA's support matrix of TensorRT-RTX. Seen: FP8 E4M3 and INT4 parse; FP4 was not tried."""

    name = "low-bits"
    severity = Severity.NOTE
    reason = "its type of codes does not run on every GPU"
    remedy = "check the GPU, or quantize with INT8, which runs on all"

    def find(self, model: LintedModel) -> Iterator[Site]:
        """Yield the grids of FP8, INT4 and FP4."""
        for node in grids(model):
            if _TAKEN.get(code_type(node)):
                yield model.site(node, _TAKEN[code_type(node)])


class ScaleNotPositive(Rule):
    """Seen: "Scale coefficients must all be positive" for 0, negative ones and NaN.

    An infinite one parses, and makes every value NaN or 0. FP16 turns scales below 6e-8 into 0.
    """

    name = "scale-not-positive"
    severity = Severity.ERROR
    reason = "TensorRT 10 and 11 refuse a scale that is 0, as of dead channels, or negative"
    remedy = "calibrate again with a positive floor under the scales, in FP32"
    repaired_by = (FloorScales,)

    def find(self, model: LintedModel) -> Iterator[Site]:
        """Yield the nodes with such a scale."""
        for node in grids(model):
            scale = _scale(node)
            finite = np.isfinite(scale).all()
            if not finite or not (scale > 0).all():
                wrong = int((~(np.isfinite(scale) & (scale > 0))).sum())
                yield model.site(node, f"{wrong} of {scale.size}", reachable=bool(finite))


class TinyScale(Rule):
    """IEEE 754: a subnormal number has fewer than its format's bits, and 1 / it overflows."""

    name = "tiny-scale"
    severity = Severity.ACCURACY
    reason = "its scale is subnormal, so that it is held with few bits"
    remedy = "keep scales in FP32, or floor them at 6.1e-5 in FP16"

    def find(self, model: LintedModel) -> Iterator[Site]:
        """Yield the nodes with a subnormal scale."""
        for node in grids(model):
            tensor = constant_at(node, 1)
            half = tensor is not None and tensor.dtype == np.float16
            smallest = float(np.finfo(np.float16 if half else np.float32).tiny)
            scale = _scale(node)
            count = int(((scale > 0) & (scale < smallest)).sum())
            if count:
                yield model.site(node, f"{count} of {scale.size} in {'FP16' if half else 'FP32'}")


class ComputedScale(Rule):
    """TensorRT 11.4 documents constants. Seen: TensorRT-RTX takes others, and computes in float."""

    name = "computed-scale"
    severity = Severity.SLOW
    reason = "its scale or zero point is no constant, as TensorRT 10 and 11 document: no INT8 layer"
    remedy = "quantize statically, on calibration images"

    def find(self, model: LintedModel) -> Iterator[Site]:
        """Yield the nodes whose scale or zero point is computed from what is no constant."""
        for node in model.nodes_of(QUANTIZE, DEQUANTIZE):
            if not has_blocks(node) and not all(map(model.is_constant, node.inputs[1:])):
                yield model.site(node)


def _scale(node: gs.Node) -> np.ndarray:
    """The scale of a Q/DQ node as FP64; empty where it is no constant."""
    scale = constant_at(node, 1)
    return np.empty(0) if scale is None else np.asarray(scale, np.float64)


CODE_RULES: tuple[Rule, ...] = (
    ZeroPoint(),
    Uint8(),
    IntegerBias(),
    CodeType(),
    ScaleNotPositive(),
    ComputedScale(),
    TinyScale(),
    LowBits(),
)
