"""The layers of the rewritten network, as an engine's inspector lists them."""

from __future__ import annotations

import math

from reptrt.engines.fusion_rules.convolutions import is_depthwise
from reptrt.engines.fusion_rules.network import DEQUANTIZE, QUANTIZE, Network, Node
from reptrt.engines.fusion_rules.network import Tensor as NetworkTensor
from reptrt.engines.fusion_rules.points import VIEWS
from reptrt.engines.inspection.kernel import Kernel, Product, Tensor, convolution

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
_WIDTHS = {"c2": "Two", "c4": "Four", "c32": "Thirty-two"}
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
        onnx_layers=tuple(part for part in node.parts if part in network.onnx_names),
        product=_product(network, node),
    )


def _tensors(network: Network, names: list[str]) -> tuple[Tensor, ...]:
    tensors = (network.tensors[name] for name in names)
    return tuple(
        Tensor(one.name, one.dtype, _sides(one), format=_format(one))
        for one in tensors
        if one.dtype != "Int64"  # shapes and axes are no data
    )


def _sides(tensor: NetworkTensor) -> tuple[int, ...]:
    """Sides of a shape; a constant without any is one value, another tensor is unknown."""
    return tensor.dims or ((1,) if tensor.is_constant else ())


def _format(tensor: NetworkTensor) -> str:
    """The layout in the words of TensorRT's inspector."""
    form = tensor.form
    dtype = {"Float": "FP32", "Half": "FP16"}.get(form.dtype, form.dtype)
    if form.layout == "nhwc":
        step = 4 if tensor.channels <= 4 or form.dtype == "Float" else 8
        return f"Channel major {dtype} format where channel % {step} == 0"
    if form.layout in _WIDTHS:
        return f"{_WIDTHS[form.layout]} wide channel vectorized row major {dtype} format"
    return f"Row major linear {dtype}"


def _product(network: Network, node: Node) -> Product | None:
    """What `node` multiplies; twins are one product with the channels of both."""
    if node.op not in ("Attention", "Conv", "ConvTranspose", "Gemm", "MatMul"):
        return None
    source = network.tensors[node.inputs[0]].dims
    result = network.tensors[node.outputs[0]].dims
    if len(source) < 2 or not result or min(*source, *result) < 1:
        return None
    if node.op == "Attention":
        rows, size = source[-2], source[-1]
        keys = network.tensors[node.inputs[1]].dims[-1]
        return Product(rows, keys, 2 * size, groups=math.prod(source[:-2]))
    if node.op in ("Gemm", "MatMul"):
        return _matrix_product(network, node, source, result)
    channels = sum(network.tensors[name].channels for name in node.outputs)
    window = network.tensors[node.weights[0]].dims[2:]
    if node.layer == "ConvActPool":  # its output is the pooled one, half as large
        result = (*result[:2], *(2 * size for size in result[2:]))
    return convolution(
        source,
        (result[0], channels, *result[2:]),
        window,
        node.integer("group", 1),
        node.ints("strides", (1,) * len(window)),
        transposed=node.op == "ConvTranspose",
    )


def _matrix_product(
    network: Network, node: Node, source: tuple[int, ...], result: tuple[int, ...]
) -> Product:
    if node.layer == "CaskConvolution":
        return Product(result[0], result[1], source[1], window=(1, 1), stride=(1, 1))
    columns, depth = result[-1], source[-1]
    if node.weights:
        return Product(math.prod(result[:-1]), columns, depth)
    return Product(result[-2], columns, depth, groups=math.prod(result[:-2]))


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
