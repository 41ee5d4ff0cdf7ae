"""Attention, found on the graph by its structure: product, softmax, product.

Scores and probabilities may be scaled, masked, biased and reshaped in between. What `find_attention`
does not find: fused attention (`reptrt.models.expand_attention` takes it apart), a softmax whose scores or
probabilities are mixed by layers, as talking heads do, and a value that multiplies the probabilities
from the left, as SHViT's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import fx

from reptrt.models.expand_attention import FUSED

aten = torch.ops.aten

PRODUCTS = (aten.matmul.default, aten.bmm.default)
SOFTMAX = (aten.softmax.int, aten._softmax.default)
MOVES = (
    aten.reshape.default,
    aten.flatten.using_ints,
    aten.permute.default,
    aten.transpose.int,
    aten.slice.Tensor,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unsqueeze.default,
    aten.expand.default,
)
# What may lie between the product of query and key, and the softmax.
SCORE_STEPS = (
    *MOVES,
    aten.add.Tensor,
    aten.mul.Tensor,
    aten.div.Tensor,
    aten.masked_fill.Scalar,
    aten.where.self,
    aten.where.ScalarOther,
)

Softmax = Literal["float", "uniform", "log2", "fp8"]
"""How attention is quantized: not at all; with its probabilities on a uniform or a log grid; or all in FP8."""


@dataclass(frozen=True)
class AttentionSite:
    """One attention whose products read quantized operands.

    Attributes:
        query: name of the quantization point of what `scores` reads first.
        key: of what it reads second, transposed already.
        probabilities: of what `product` reads first.
        value: of what it reads second.
        scores: node name of the product of query and key.
        product: node name of the product of probabilities and value.
    """

    query: str
    key: str
    probabilities: str
    value: str
    scores: str
    product: str

    @property
    def points(self) -> tuple[str, str, str, str]:
        """Its four points of quantization."""
        return self.query, self.key, self.probabilities, self.value


def has_attention(graph: fx.Graph) -> bool:
    """Whether `graph` holds attention, fused or in parts, whoever wrote it."""
    return any(node.target is FUSED for node in graph.nodes) or bool(find_attention(graph))


def find_attention(graph: fx.Graph) -> list[tuple[fx.Node, fx.Node]]:
    """(product of query and key, product of probabilities and value), in graph order."""
    computed: set[fx.Node] = set()  # what depends on the images
    products: set[fx.Node] = set()
    found = []
    for node in graph.nodes:
        if node.op == "placeholder" or any(source in computed for source in node.all_input_nodes):
            computed.add(node)
        if node.target in PRODUCTS and computed.issuperset(operands(node)):
            products.add(node)
    for node in graph.nodes:
        if node.target in SOFTMAX:
            scores, product = _product_before(node, products), _product_behind(node, products)
            if scores is not None and product is not None:
                found.append((scores, product))
    return found


def operands(product: fx.Node) -> tuple[fx.Node, fx.Node]:
    """What a node of `PRODUCTS` multiplies."""
    first, second = product.args[:2]
    assert isinstance(first, fx.Node)
    assert isinstance(second, fx.Node)
    return first, second


def _product_before(node: fx.Node, products: set[fx.Node]) -> fx.Node | None:
    """The product whose scaled, masked and moved elements `node` reads."""
    for source in node.all_input_nodes:
        if source in products:
            return source
        if source.target in SCORE_STEPS:
            found = _product_before(source, products)
            if found is not None:
                return found
    return None


def _product_behind(node: fx.Node, products: set[fx.Node]) -> fx.Node | None:
    """The product that alone reads `node`, moved or not, as its first operand."""
    while len(node.users) == 1:
        reader = next(iter(node.users))
        if reader in products:
            return reader if reader.args[0] is node else None
        if reader.target not in MOVES:
            return None
        node = reader
    return None
