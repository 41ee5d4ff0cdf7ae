"""What joins a convolution: the residual Add, the activation, a twin beside it, a MaxPool."""

from __future__ import annotations

from typing import ClassVar

from reptrt.engines.fusion_rules.network import Network, Node
from reptrt.engines.fusion_rules.rule import Build, Evidence, Rule

_ACTIVATIONS = ("Relu", "Clip")
_PRODUCTS = ("Conv", "Gemm", "MatMul")


def is_depthwise(network: Network, node: Node) -> bool:
    """Whether `node` is a convolution of each channel by itself."""
    groups = node.integer("group", 1)
    return node.op == "Conv" and groups > 1 and groups == network.tensors[node.inputs[0]].channels


def is_product(node: Node) -> bool:
    """Whether `node` multiplies one computed tensor by constant weights, and is a layer yet."""
    return node.op in (*_PRODUCTS, "ConvTranspose") and bool(node.weights) and not node.layer


def has_quantized_weights(network: Network, node: Node) -> bool:
    """Whether the weights of a product come from a DequantizeLinear."""
    return bool(node.weights) and network.tensors[node.weights[0]].quantized


class FuseActivation(Rule):
    """Guide: "Convolution and ReLU", "Convolution and Clip". A100, TITAN RTX: every one.

    ConvTranspose keeps its activation behind it, as it keeps its Q (NVIDIA/TensorRT#2597).
    """

    evidence: ClassVar[Evidence] = Evidence.SEEN

    def apply(self, network: Network, build: Build) -> None:
        """Fuse Relu or Clip into the convolution or product that it alone reads."""
        for node in network.nodes(*_PRODUCTS):
            if is_product(node) and not node.activation:
                fuse_activation(network, node)


def fuse_activation(network: Network, node: Node) -> None:
    """Let `node` compute the Relu or Clip that alone reads it."""
    reader = network.only_reader(node.outputs[0])
    if reader is not None and reader.op in _ACTIVATIONS:
        reader.weights = []  # bounds
        node.activation = reader.op
        network.absorb_reader(node, reader)


class FuseResidual(Rule):
    """Guide: "Convolution and ElementWise": a sum that does not broadcast, then its activation.

    A100, TITAN RTX: every one; of two convolutions the one that runs later takes the Add (A100).
    Depthwise kernels have no such link (NVIDIA/TensorRT#3205), an activation before the Add keeps
    it apart (ultralytics/ultralytics#17640: Conv, then Sigmoid, Mul and Add in one kernel).
    """

    evidence: ClassVar[Evidence] = Evidence.SEEN

    def apply(self, network: Network, build: Build) -> None:
        """Fuse Add into the later of the convolutions it reads, and what activates it."""
        for add in network.nodes("Add", "Sum"):
            if len(add.inputs) != 2 or add.inputs[0] == add.inputs[1]:
                continue
            writers = [network.writer(name) for name in add.inputs]
            layers = [node for node in writers if node is not None and self._fits(network, node)]
            if not layers:
                continue
            layer = max(layers, key=lambda node: node.order)
            layer.skip = next(name for name in add.inputs if name not in layer.outputs)
            network.absorb_reader(layer, add)
            fuse_activation(network, layer)

    def _fits(self, network: Network, node: Node) -> bool:
        if node.op != "Conv" or not is_product(node) or is_depthwise(network, node):
            return False
        if node.activation or node.skip:
            return False
        add = network.only_reader(node.outputs[0])
        if add is None:
            return False
        shapes = {network.tensors[name].dims for name in (*add.inputs, *add.outputs)}
        return len(shapes) == 1


class FusePointwise(Rule):
    """Any other activation that depends on the convolution alone, such as SiLU or Sigmoid.

    INT8: NVIDIA/TensorRT#3205, but not behind depthwise kernels. FP16: on Orin
    (ultralytics/ultralytics#17640), and not on Xavier (open-mmlab/mmdeploy#1059), so from compute
    capability 8.0 on is assumed; not in FP32 (ultralytics/ultralytics#6471), nor with an Add in it
    (all three), nor behind twins (#17640). Products of transformers take theirs too
    (TensorRT-RTX; assumed).
    """

    evidence: ClassVar[Evidence] = Evidence.REPORTED

    def apply(self, network: Network, build: Build) -> None:
        """Fuse a pointwise kernel into the convolution that it alone reads."""
        for node in network.nodes("Conv", "Gemm", "MatMul"):
            if not is_product(node) or not self._fits(network, build, node):
                continue
            reader = network.only_reader(node.outputs[0])
            if reader is not None and reader.op == "Pointwise" and self._is_unary(network, reader):
                node.activation = "Pointwise"
                reader.weights = []
                network.absorb_reader(node, reader)

    def _fits(self, network: Network, build: Build, node: Node) -> bool:
        if node.activation or node.skip or len(node.outputs) > 1 or is_depthwise(network, node):
            return False
        if has_quantized_weights(network, node):
            return node.op == "Conv"
        is_half = network.tensors[node.weights[0]].dtype in ("Half", "BFloat16")
        return is_half and (node.op == "MatMul" or build.compute_capability >= (8, 0))

    def _is_unary(self, network: Network, node: Node) -> bool:
        same = network.tensors[node.inputs[0]].dims == network.tensors[node.outputs[0]].dims
        constants = (network.tensors[name].dims for name in node.weights)
        return len(node.inputs) == 1 and same and all(set(dims) <= {1} for dims in constants)


class MergeTwins(Rule):
    """Convolutions of one tensor with one kernel, stride and activation become one layer.

    NVIDIA/TensorRT#1602 ("Conv_45 + Relu_46 || Conv_52 + Relu_53"), which says too that Q/DQ
    prevents it; with SiLU the activations of both stay apart (ultralytics/ultralytics#17640, FP16
    or INT8 on Orin; #6471, FP32).
    """

    evidence: ClassVar[Evidence] = Evidence.REPORTED

    def apply(self, network: Network, build: Build) -> None:
        """Merge the twins of each tensor."""
        twins: dict[tuple[object, ...], Node] = {}
        for node in network.in_order():
            if node.op != "Conv" or not is_product(node) or node.skip:
                continue
            if node.integer("group", 1) > 1 or has_quantized_weights(network, node):
                continue
            first = twins.setdefault(self._likeness(network, node), node)
            if first is not node:
                self._merge(network, first, node)

    def _likeness(self, network: Network, node: Node) -> tuple[object, ...]:
        spatial = network.tensors[node.weights[0]].dims[2:]
        shape = [node.ints(name) for name in ("strides", "pads", "dilations")]
        result = network.tensors[node.outputs[0]].form
        return (node.inputs[0], spatial, *shape, node.activation, result)

    def _merge(self, network: Network, first: Node, second: Node) -> None:
        network.remove(first)
        network.remove(second)
        first.outputs = [*first.outputs, *second.outputs]
        first.weights = [*first.weights, *second.weights]
        first.parts = [*first.parts, "||", *second.parts]
        network.add(first)


class FuseMaxPool(Rule):
    """Guide: "Convolution and Pooling". A100, INT8: the 7x7 of ResNet-18 with the MaxPool behind it.

    Only where both are INT8, and only for that first layer; in FP16 the two stay apart (A100).
    """

    evidence: ClassVar[Evidence] = Evidence.SEEN

    def apply(self, network: Network, build: Build) -> None:
        """Fuse the first convolution with the MaxPool that alone reads it."""
        for node in network.nodes("Conv"):
            pool = network.only_reader(node.outputs[0])
            if pool is None or pool.op != "MaxPool" or not self._is_first(network, node):
                continue
            both_int8 = network.tensors[node.outputs[0]].dtype == "Int8"
            shape = (*pool.ints("kernel_shape"), *pool.ints("strides"))
            if both_int8 and shape == (3, 3, 2, 2):
                node.layer = "ConvActPool"
                network.absorb_reader(node, pool)

    def _is_first(self, network: Network, node: Node) -> bool:
        is_stem = network.tensors[node.inputs[0]].channels <= 4
        return is_stem and network.tensors[node.weights[0]].dims[2:] == (7, 7)
