"""The layers of the rewritten network, as an engine's inspector lists them."""

from __future__ import annotations

from reptrt.engines.fusion_rules.convolutions import is_depthwise
from reptrt.engines.fusion_rules.network import DEQUANTIZE, QUANTIZE, Network, Node
from reptrt.engines.fusion_rules.points import VIEWS
from reptrt.engines.inspection.kernels import Kernel

_KINDS = {
    "ConvTranspose": "CaskDeconvolution",
    "Gemm": "gemm",
    "MatMul": "gemm",
    "Pointwise": "PointWise",
    "LayerNormalization": "Normalization",
    "InstanceNormalization": "Normalization",
    "GroupNormalization": "Normalization",
    "Softmax": "SoftMax",
    "Transpose": "Shuffle",
    "Cast": "Reformat",
    QUANTIZE: "Reformat",
    DEQUANTIZE: "Reformat",
    **dict.fromkeys(VIEWS, "NoOp"),
}
_UNLISTED = ("Concat", "Split")  # no layer: others write into it, or read from it


def list_layers(network: Network) -> tuple[Kernel, ...]:
    """Return a kernel for each node that the engine runs or lists, in order of execution."""
    return tuple(_kernel(network, node) for node in network.in_order() if _is_listed(network, node))


def _is_listed(network: Network, node: Node) -> bool:
    if node.op == "Slice":
        return not _is_view_of_channels(network, node)
    return node.op not in _UNLISTED


def _is_view_of_channels(network: Network, node: Node) -> bool:
    """Whether it selects a range of axis 1 (ultralytics/ultralytics#6471 lists no layer)."""
    constants = [network.tensors[name].values for name in node.weights]
    if len(constants) < 3 or constants[2] is None or constants[2].ravel().tolist() != [1]:
        return False
    return len(constants) < 4 or (constants[3] is not None and constants[3].ravel().tolist() == [1])


def _kernel(network: Network, node: Node) -> Kernel:
    return Kernel(
        name=" + ".join(node.parts).replace("+ || +", "||"),
        kind=_kind(network, node),
        inputs=_tensors(network, node.inputs),
        weights=_tensors(network, node.weights),
        outputs=_tensors(network, node.outputs),
        onnx_layers=tuple(part for part in node.parts if part != "||"),
    )


def _tensors(network: Network, names: list[str]) -> tuple[tuple[str, str], ...]:
    return tuple((name, network.tensors[name].dtype) for name in names)


def _kind(network: Network, node: Node) -> str:
    if node.layer:
        return node.layer
    if node.op == "Conv":
        return "CudaDepthwiseConvolution" if is_depthwise(network, node) else "CaskConvolution"
    layout = network.tensors[node.inputs[0]].form.layout if node.inputs else ""
    if node.op in ("AveragePool", "GlobalAveragePool"):
        return "TiledPooling" if layout == "c2" else "CaskPooling"
    if node.op in ("MaxPool", "GlobalMaxPool"):
        return "TiledPooling" if layout == "linear" else "CudaPooling"
    return _KINDS.get(node.op, node.op)
