"""Rules on the file as a whole: format, operators, opset, types of what is not INT8, shapes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from reptrt.engines.foreign.contributed import DOMAIN, is_contributed
from reptrt.engines.lint.base import LintedModel, Rule, Severity, Site
from reptrt.engines.lint.layers import WEIGHTED
from reptrt.engines.surgery.dialects.dynamic import is_dynamic
from reptrt.engines.surgery.dialects.expand_operators import ExpandOperators, can_expand
from reptrt.engines.surgery.dialects.quantize_arithmetic import (
    ROUND,
    QuantizeArithmetic,
    find_fake_quantization,
)
from reptrt.engines.surgery.dialects.write_contributed import WriteContributed
from reptrt.engines.surgery.qdq import DEQUANTIZE, QUANTIZE, constant_at
from reptrt.engines.surgery.repair.state_zero_points import is_operator_format

_DOCUMENTED = range(9, 21)
_PER_CHANNEL = 13


class OperatorFormat(Rule):
    """Seen: the ONNX parser of TensorRT-RTX 1.7.1 knows none of them."""

    name = "operator-format"
    severity = Severity.ERROR
    reason = "TensorRT 10 and 11 have no integer operators, they read Q/DQ pairs around float ones"
    remedy = "quantize again, statically and with pairs (ONNX Runtime: QuantFormat.QDQ)"
    repaired_by = (ExpandOperators,)

    def find(self, model: LintedModel) -> Iterator[Site]:
        """Yield the operators that compute on codes, on grids that are known."""
        for node in model.nodes:
            if is_operator_format(node) and not is_dynamic(node.op):
                yield model.site(node, node.op, can_expand(node))


class RuntimeOperator(Rule):
    """Seen: TensorRT-RTX 1.7.1 knows none of them, but for those that ONNX has by the same name."""

    name = "runtime-operator"
    severity = Severity.ERROR
    reason = "it is ONNX Runtime's own, and TensorRT 10 and 11 have ONNX's operators only"
    remedy = "take the file from before ONNX Runtime's optimizer, or export the model without it"
    repaired_by = (WriteContributed,)

    def find(self, model: LintedModel) -> Iterator[Site]:
        """Yield the operators of ONNX Runtime's own that do not compute on codes."""
        for node in model.nodes:
            can_write = is_contributed(node.op, node.domain or "", model.opset)
            is_other = node.domain == DOMAIN and node.op not in (QUANTIZE, DEQUANTIZE)
            if can_write or (is_other and not is_operator_format(node) and not is_dynamic(node.op)):
                yield model.site(node, node.op, can_write)


class DynamicQuantization(Rule):
    """ONNX Runtime's `quantize_dynamic`. Seen: no parser of TensorRT knows its operators."""

    name = "dynamic-quantization"
    severity = Severity.ERROR
    reason = "its scales are computed from each input, and TensorRT 10 and 11 have no such layer"
    remedy = "quantize with images: start from the float weights (reptrt: `requantize=True`)"

    def find(self, model: LintedModel) -> Iterator[Site]:
        """Yield the operators of dynamic quantization."""
        return (model.site(node, node.op) for node in model.nodes if is_dynamic(node.op))


class FakeQuantization(Rule):
    """What Brevitas and torch.export leave of it; TensorRT runs it as the arithmetic that it is."""

    name = "fake-quantization"
    severity = Severity.SLOW
    reason = "it rounds to a grid by Div, Round, Clip and Mul, which TensorRT runs in float"
    remedy = "export with QuantizeLinear and DequantizeLinear (Brevitas: `export_onnx_qcdq`)"
    repaired_by = (QuantizeArithmetic,)

    def find(self, model: LintedModel) -> Iterator[Site]:
        """Yield the middle of each fake quantization that becomes a pair."""
        for node in model.nodes_of(ROUND):
            if find_fake_quantization(node):
                yield model.site(node)


class Opset(Rule):
    """TensorRT 10.0's operator table ends at opset 20; TensorRT-RTX 1.7.1 parsed 7 to 25."""

    name = "opset"
    severity = Severity.NOTE
    reason = "TensorRT 10.0 documents opsets 9 to 20 only, and JetPack 6 has TensorRT 10.3"
    remedy = "export with opset 19, or convert with onnx.version_converter"

    def find(self, model: LintedModel) -> Iterator[Site]:
        """Yield the file where its opset is out of that range."""
        if model.opset not in _DOCUMENTED:
            yield Site(detail=f"opset {model.opset}")


class PerChannelOpset(Rule):
    """ONNX: QuantizeLinear has an axis from opset 13 on; before, its scale is one number."""

    name = "per-channel-opset"
    severity = Severity.ACCURACY
    reason = (
        "one scale per channel means nothing before opset 13, and runtimes differ in what they do"
    )
    remedy = "export with opset 13 or newer"

    def find(self, model: LintedModel) -> Iterator[Site]:
        """Yield the nodes with several scales in an old file."""
        for node in model.nodes_of(QUANTIZE, DEQUANTIZE) if model.opset < _PER_CHANNEL else ():
            scale = constant_at(node, 1)
            if scale is not None and scale.size > 1:
                yield model.site(node)


class NotQuantized(Rule):
    """roboflow/rf-detr#1453: an FP32 file builds an FP32 engine on TensorRT 11, without a warning."""

    name = "not-quantized"
    severity = Severity.NOTE
    reason = "nothing is quantized; without calibrator and precision flags TensorRT 11 builds it as it is"
    remedy = "quantize it (reptrt engine), or convert it to FP16"

    def find(self, model: LintedModel) -> Iterator[Site]:
        """Yield the file where it holds no Q/DQ."""
        others = any(map(is_operator_format, model.nodes)) or any(
            map(find_fake_quantization, model.nodes_of(ROUND))
        )
        if not model.is_quantized and not others:
            yield Site(detail=" and ".join(_float_types(model)) or "float")


class FloatRemainder(Rule):
    """As `NotQuantized`, for what has no Q/DQ: TensorRT 11 is strongly typed."""

    name = "fp32-remainder"
    severity = Severity.NOTE
    reason = "what is not INT8 runs in FP32: TensorRT 11 and typed TensorRT 10 have no FP16 flag"
    remedy = 'export it in FP16 if its values fit (reptrt: `precision="fp16"`)'

    def find(self, model: LintedModel) -> Iterator[Site]:
        """Yield the file where its layers work on FP32."""
        if model.is_quantized and "FP32" in _float_types(model):
            yield Site()


def _float_types(model: LintedModel) -> list[str]:
    """The float types that layers compute in."""
    names = {np.dtype(np.float32): "FP32", np.dtype(np.float16): "FP16"}
    found = {
        names.get(np.dtype(dtype))
        for node in model.nodes_of(*WEIGHTED, "ConvTranspose")
        for dtype in [node.outputs[0].dtype]
        if dtype is not None and not isinstance(dtype, int)
    }
    return sorted(name for name in found if name)


class OtherCompilersForm(Rule):
    """Seen in TensorRT-RTX 1.7.1, which has fewer bytes to move so; classic TensorRT fuses the scales."""

    name = "multiplier-form"
    severity = Severity.NOTE
    reason = "its scales are written for TensorRT-RTX; classic TensorRT fuses scales per channel"
    remedy = 'for classic TensorRT, export it with such a target (reptrt: `target="tensorrt"`)'

    def find(self, model: LintedModel) -> Iterator[Site]:
        """Yield the file where its form is the multiplier form."""
        if model.form == "multiplier":
            yield Site()


class DynamicShape(Rule):
    """Seen: parses, and the build fails without an optimization profile."""

    name = "dynamic-shape"
    severity = Severity.NOTE
    reason = "the input has open dimensions: the build needs an optimization profile"
    remedy = (
        "give its least, usual and largest shape (trtexec: --minShapes --optShapes --maxShapes)"
    )

    def find(self, model: LintedModel) -> Iterator[Site]:
        """Yield the inputs with open dimensions."""
        for tensor in model.graph.inputs:
            shape = list(tensor.shape or ())
            if not all(isinstance(side, int) for side in shape):
                yield Site(tensor.name, "input", "x".join(map(str, shape)))


class ControlFlow(Rule):
    """Surgery works on the main graph."""

    name = "control-flow"
    severity = Severity.NOTE
    reason = "its inner graphs are looked at, but cannot be repaired here"
    remedy = "export for a fixed input without If, Loop and Scan"

    def find(self, model: LintedModel) -> Iterator[Site]:
        """Yield the control flow of the main graph."""
        return (model.site(node) for node in model.nodes_of("If", "Loop", "Scan"))


FILE_RULES: tuple[Rule, ...] = (
    OperatorFormat(),
    RuntimeOperator(),
    DynamicQuantization(),
    FakeQuantization(),
    PerChannelOpset(),
    Opset(),
    NotQuantized(),
    FloatRemainder(),
    OtherCompilersForm(),
    DynamicShape(),
    ControlFlow(),
)
