"""What surrounds attention: the fused kernel itself, moves of heads, normalization, residuals.

Classic TensorRT compiles these with the compiler that TensorRT-RTX uses too, and no list of a
classic engine at hand shows them: the rules are what TensorRT-RTX 1.7.1 does with DeiT-Tiny.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from reptrt.engines.fusion_rules.int8_layers import dequantizer, read_codes
from reptrt.engines.fusion_rules.network import FP8, Network, Node
from reptrt.engines.fusion_rules.pointwise import absorb_writer
from reptrt.engines.fusion_rules.rule import Build, Evidence, Rule

_BETWEEN = frozenset({"Add", "Cast", "Div", "Mul", "Reshape", "Sub", "Unsqueeze", "Where"})
_VIEWS = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze"})
_MOVES = _VIEWS | {"Expand", "Gather", "Slice", "Split", "Transpose"}
_HEAD_SIZES = range(16, 257)


class FuseAttention(Rule):
    """Guide, "Fused attention": softmax(Q K^T + mask) V in one kernel, in FP16, BF16 or FP8.

    INT8 inside prevents it, and so does FP8 on less than all four operands (TensorRT-RTX). That it needs compute
    capability 8.0, for FP8 8.9, and heads of 16 to 256 channels, a multiple of 8, is assumed.
    """

    evidence: ClassVar[Evidence] = Evidence.DOCUMENTED

    def apply(self, network: Network, build: Build) -> None:
        """Make product, scaling, mask, Softmax and product one node of kind Attention."""
        if build.compute_capability < (8, 0):
            return
        for softmax in network.nodes("Softmax"):
            pair, product = self._product_behind(network, softmax)
            if product is None or product.op != "MatMul" or product.weights:
                continue
            chain = self._scores(network, softmax)
            if chain is None or not self._fits(network, chain[-1]):
                continue
            operands = [*chain[-1].inputs, *product.inputs[1:]]
            quantized = [_is_fp8(dequantizer(network, name)) for name in operands]
            if any(quantized) != bool(pair) or any(quantized) != all(quantized):
                continue
            if pair and build.compute_capability < (8, 9):
                continue
            for node in (*reversed(pair), softmax, *chain):
                absorb_writer(network, product, node)
            for name in operands if pair else ():
                read_codes(network, product, name)
            product.op, product.layer = "Attention", "_gemm_mha_v2"
            absorb_single_readers(network, product, _VIEWS | {"Transpose"})

    def _product_behind(self, network: Network, softmax: Node) -> tuple[list[Node], Node | None]:
        """Q and DQ of probabilities in FP8, or nothing, and what reads them."""
        pair: list[Node] = []
        node = network.only_reader(softmax.outputs[0])
        while _is_fp8(node):
            assert node is not None
            pair.append(node)
            node = network.only_reader(node.outputs[0])
        return pair, node

    def _scores(self, network: Network, softmax: Node) -> list[Node] | None:
        """What lies between Q K^T and Softmax, the product last."""
        chain: list[Node] = []
        tensor = softmax.inputs[0]
        while True:
            node = network.writer(tensor)
            if node is None or network.only_reader(tensor) is None:
                return None
            if node.op != "MatMul" and node.op not in _BETWEEN:
                return None
            chain.append(node)
            if node.op == "MatMul":
                return chain if not node.weights else None
            tensor = self._main_input(network, node)

    def _main_input(self, network: Network, node: Node) -> str:
        """The input of `node` that is no mask: as large as its output, and not a constant."""
        size = network.tensors[node.outputs[0]].dims
        same = [name for name in node.inputs if network.tensors[name].dims == size]
        return (same or node.inputs)[0]

    def _fits(self, network: Network, scores: Node) -> bool:
        query = network.tensors[scores.inputs[0]]
        size = query.dims[-1] if query.dims else 0
        return query.dtype in ("Half", "BFloat16") and size in _HEAD_SIZES and size % 8 == 0


def _is_fp8(node: Node | None) -> bool:
    return node is not None and node.codes == FP8


def absorb_single_readers(network: Network, node: Node, ops: frozenset[str]) -> None:
    """Let `node` compute the chain of `ops` behind it, each the only reader of the one before."""
    reader = network.only_reader(node.outputs[0])
    while reader is not None and reader.op in ops and len(reader.outputs) == 1:
        reader.weights = []
        network.absorb_reader(node, reader)
        reader = network.only_reader(node.outputs[0])


class FuseMoves(Rule):
    """TensorRT-RTX: Reshape, Transpose, Slice and the scaling of Q and K are one kernel.

    Classic TensorRT joins Reshape and Transpose too (ultralytics/yolov5 lists "Reshape_157 +
    Transpose_158" in alanli1997/slim-neck-by-gsconv#18).
    """

    evidence: ClassVar[Evidence] = Evidence.REPORTED

    def apply(self, network: Network, build: Build) -> None:
        """Join the tree of moves that hangs on one tensor, if something in it moves values."""
        for root in network.nodes(*_MOVES):
            writer = network.writer(root.inputs[0])
            if self._moves(root) and (writer is None or not self._moves(writer)):
                self._join_tree(network, root)

    def _moves(self, node: Node) -> bool:
        return node.op in _MOVES and len(node.inputs) == 1 and not node.layer

    def _join_tree(self, network: Network, root: Node) -> None:
        tree = list(self._tree(network, root))
        if any(node.op == "Transpose" for node in tree):
            self._join(network, tree)

    def _tree(self, network: Network, root: Node) -> Iterator[Node]:
        waiting = [root]
        while waiting:
            node = waiting.pop()
            yield node
            for output in node.outputs:
                for reader in network.readers(output):
                    scales = reader.op == "Pointwise" and len(reader.inputs) == 1
                    if self._moves(reader) or (scales and not reader.layer):
                        waiting.append(reader)

    def _join(self, network: Network, tree: list[Node]) -> None:
        inner = {output for node in tree for output in node.outputs}
        members = set(tree)
        outside = [
            name
            for name in inner
            if name in network.outputs or any(r not in members for r in network.readers(name))
        ]
        for node in tree:
            network.remove(node)
        joined = Node(
            op="Shuffle",
            layer="Shuffle",
            inputs=tree[0].inputs[:1],
            outputs=sorted(outside),
            parts=[part for node in tree for part in node.parts],
            order=max(node.order for node in tree),
        )
        network.add(joined)


class FuseProductResidual(Rule):
    """TensorRT-RTX: the residual Add joins the float product before it, as it does a convolution.

    Behind an INT8 product it joins the normalization that follows (`FuseNormalization`).
    """

    evidence: ClassVar[Evidence] = Evidence.ASSUMED

    def apply(self, network: Network, build: Build) -> None:
        """Fuse Add into the float MatMul or Gemm before it."""
        for add in network.nodes("Add"):
            if len(add.inputs) != 2 or add.inputs[0] == add.inputs[1]:
                continue
            for name in add.inputs:
                product = network.writer(name)
                if product is not None and self._fits(network, product, add):
                    product.skip = next(n for n in add.inputs if n not in product.outputs)
                    network.absorb_reader(product, add)
                    break

    def _fits(self, network: Network, product: Node, add: Node) -> bool:
        if product.op not in ("Gemm", "MatMul") or len(product.inputs) != 1 or product.activation:
            return False
        if network.tensors[product.weights[0]].quantized:
            return False
        shapes = {network.tensors[name].dims for name in (*add.inputs, *add.outputs)}
        return len(shapes) == 1 and network.only_reader(product.outputs[0]) is add


class FuseNormalization(Rule):
    """TensorRT-RTX: a residual Add before LayerNormalization is one kernel with it, of two outputs.

    The normalized tensor is the first output, the sum the second.
    """

    evidence: ClassVar[Evidence] = Evidence.ASSUMED

    def apply(self, network: Network, build: Build) -> None:
        """Let each LayerNormalization compute the pointwise kernel before it."""
        for norm in network.nodes("LayerNormalization"):
            source = norm.inputs[0]
            before = network.writer(source)
            if before is None or before.op != "Pointwise" or len(before.outputs) != 1:
                continue
            is_sum = network.only_reader(source) is not norm
            network.remove(before)
            network.remove(norm)
            norm.inputs = list(before.inputs)
            norm.weights = [*before.weights, *norm.weights]
            norm.parts = [*before.parts, *norm.parts]
            norm.outputs = [norm.outputs[0], *([source] if is_sum else [])]
            network.add(norm)
