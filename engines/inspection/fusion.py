"""The fusion report: every kernel of an engine, and which layers of the ONNX model run in INT8.

Quantizable layers are Conv, Gemm and MatMul with a constant weight. ConvTranspose is not counted:
it stays float by design (TensorRT-RTX has no INT8 kernel for it, and in TensorRT it is seldom
faster), and is listed among the float islands with that reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx

from reptrt.engines.foreign.border import reading
from reptrt.engines.form import read_form
from reptrt.engines.inspection.kernels import Kernel, LayerListError, parse_kernels
from reptrt.engines.inspection.placement_notes import NotesError, read_islands, read_reasons
from reptrt.engines.inspection.qdq_graph import WeightedLayer, attentions, weighted_layers
from reptrt.engines.inspection.traffic import measure_traffic
from reptrt.engines.report_schema import FloatIsland, FusionReport

__all__ = [
    "Kernel",
    "LayerListError",
    "fusion_report",
    "parse_kernels",
]


DEPTHWISE = "depthwise: FP16 in the form for TensorRT-RTX, which would pad its INT8 fourfold"


def fusion_report(kernels: Sequence[Kernel], onnx_path: Path, backend: str = "") -> FusionReport:
    """Match the `kernels` of an engine with the layers of the ONNX file it was built from.

    Args:
        kernels: in execution order.
        onnx_path: the Q/DQ graph.
        backend: builder and its version, for the report.

    Raises:
        NotesError: its metadata has our keys, and not what export writes there.
    """
    model = onnx.load(str(onnx_path), load_external_data=False)
    layers = weighted_layers(model.graph)
    by_form = depthwise_by_form(model, layers)
    quantizable = [layer for layer in layers if layer.op != "ConvTranspose"]
    with reading(onnx_path, NotesError, "its notes on layers are damaged; export again"):
        reasons, operators = read_reasons(model), tuple(read_islands(model))
    islands = [
        island
        for layer in layers
        for island in _float_island(layer, kernels, by_form, reasons.get(layer.name))
    ]
    int8_layers = len(quantizable) - sum(island.op != "ConvTranspose" for island in islands)
    found = attentions(model.graph)
    return FusionReport(
        backend=backend,
        int8_layers=int8_layers,
        quantizable_layers=len(quantizable),
        int8_coverage=round(100 * int8_layers / len(quantizable), 2) if quantizable else 0.0,
        attention_blocks=len(found),
        fused_attention=sum(_is_fused(nodes, layers, kernels) for nodes in found),
        kernels=len(kernels),
        traffic=measure_traffic(kernels),
        float_islands=tuple(islands),
        operator_islands=operators,
        fused_kernels=tuple(kernels),
    )


def depthwise_by_form(model: onnx.ModelProto, layers: Sequence[WeightedLayer]) -> frozenset[str]:
    """Names of the depthwise layers that are FP16 because of the form of `model`."""
    depthwise = [layer for layer in layers if layer.depthwise]
    if read_form(model) != "multiplier" or any(layer.weight_quantized for layer in depthwise):
        return frozenset()
    return frozenset(layer.name for layer in depthwise)


def _is_fused(
    attention: frozenset[str], layers: Sequence[WeightedLayer], kernels: Sequence[Kernel]
) -> bool:
    """Whether one kernel computes all of `attention`, and no layer around it.

    A region that TensorRT leaves to its own compiler names layers too: it is not one kernel.
    """
    weighted = {layer.name for layer in layers}
    named = (set(kernel.onnx_layers) for kernel in kernels)
    return any(attention <= nodes and nodes.isdisjoint(weighted) for nodes in named)


def _float_island(
    layer: WeightedLayer, kernels: Sequence[Kernel], by_form: frozenset[str], stated: str | None
) -> list[FloatIsland]:
    """Return no island where every kernel that multiplies for `layer` does so in INT8, else one.

    `stated` is why placement left the layer float.
    """
    naming = [kernel for kernel in kernels if layer.name in kernel.onnx_layers]
    multiplying = [kernel for kernel in naming if kernel.multiplies_weights]
    if multiplying and all(kernel.is_int8 for kernel in multiplying):
        return []
    float_kernels = [kernel for kernel in multiplying or naming if not kernel.is_int8]
    reason = DEPTHWISE if layer.name in by_form else _reason(layer, float_kernels)
    if stated is not None and not layer.weight_quantized:
        reason = stated
    return [FloatIsland(layer=layer.name, op=layer.op, reason=reason)]


def _reason(layer: WeightedLayer, kernels: Sequence[Kernel]) -> str:
    if layer.op == "ConvTranspose":
        return "ConvTranspose stays float"
    if not layer.activation_quantized and not layer.weight_quantized:
        return "not quantized: no Q/DQ on its activation and none on its weight"
    if not layer.activation_quantized:
        return "half quantized: no Q/DQ on its activation, only on its weight"
    if not layer.weight_quantized:
        return "half quantized: no Q/DQ on its weight, only on its activation"
    return f"quantized, but {layer.obstacle or _choice(kernels)}"


def _choice(kernels: Sequence[Kernel]) -> str:
    """Say what the compiler chose for a layer that is quantized on both sides."""
    if not kernels:
        return "no kernel names it: the compiler folded it away or lost its name"
    kernel = kernels[0]
    if kernel.inputs and kernel.inputs[0].dtype == "Int8":
        return f"kernel '{kernel.name}' reads Int8 and multiplies in float"
    read = ", ".join(dict.fromkeys(tensor.dtype for tensor in kernel.inputs)) or "no tensor"
    return f"the compiler chose float: kernel '{kernel.name}' reads {read}"
