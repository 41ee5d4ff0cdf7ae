"""Where quantizers go: TensorRT's explicit-quantization rules, decided on the ATen graph.

The rules (NVIDIA, "Working with quantized types"; measured with TensorRT-RTX):

1. every input of a convolution or linear is quantized, activation and weight;
2. operators that only move or select values (max-pool, concat, nearest upsampling, reshape, ...)
   keep the integer grid: what flows through them into quantized layers shares one scale, so no
   concat ever requantizes. The quantizer stands in front of max-pool and concat, but behind an
   upsampling, which takes no integers (`reptrt.calibrators.quantized.moving`);
3. a residual add reads the skip connection through the quantizer that a convolution already put
   there, so the skip travels as INT8, also where it is multiplied by a constant on its way. Where
   both sides are convolutions, the output of the shortcut, the one with fewer layers before it,
   gets a quantizer: with a float skip TensorRT writes float behind the other convolution too;
4. on request (`softmax`), both products of every attention read quantized operands: query, key,
   probabilities and value, each with a scale of its own, whatever layers the recipe names; in FP8
   that is still one kernel, in INT8 it is several;
5. on request (`pools`), an average pool between quantized layers reads quantized values: classic
   TensorRT then runs it in INT8, and what feeds it writes INT8;
6. a detector's prediction layers stay float unless asked for: they are cheap, and a step of an 8-bit
   grid is a visible shift of a box (YOLOv6's own partial quantization leaves them out too);
7. layers that were measured to be too sensitive stay float (`reptrt.calibrators.sensitivity`);
8. everything else stays float: normalisation, softmax and the integral over it (distribution focal
   loss), activations, transposed convolutions, squeeze-and-excitation layers on 1x1 maps (one GEMV:
   INT8 cannot pay), and layers that the recipe names.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from operator import getitem

import torch
from torch import fx

from reptrt.calibrators.quantized.find_attention import (
    SOFTMAX,
    AttentionSite,
    Softmax,
    find_attention,
    operands,
)
from reptrt.calibrators.quantized.moving import LAYOUT, MOVING, SELECTING
from reptrt.calibrators.quantized.pools import find_pools
from reptrt.models.graph import layer_name
from reptrt.models.onnx_import.island_op import is_island

aten = torch.ops.aten

WEIGHTED = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.linear.default)
TRANSPOSED = (
    aten.conv_transpose1d.default,
    aten.conv_transpose2d.input,
    aten.conv_transpose3d.input,
)
ADDS = (aten.add.Tensor,)
ACTIVATIONS = (
    aten.relu.default,
    aten.silu.default,
    aten.hardswish.default,
    aten.hardtanh.default,
    aten.leaky_relu.default,
    aten.gelu.default,
)
SCALINGS = (aten.mul.Tensor,)
PREDICTION = (
    "last layer of a network that is no classifier: a step of its grid shows in the boxes, masks or"
    " values that it makes (`quantize_head=True` quantizes it)"
)


@dataclass(frozen=True)
class QuantizationPoint:
    """One activation quantizer.

    Attributes:
        name: name of the quantizer, after the first tensor it quantizes.
        edges: (value, consumer) pairs of node names: `consumer` reads `value` quantized.
    """

    name: str
    edges: tuple[tuple[str, str], ...]

    @property
    def tensors(self) -> tuple[str, ...]:
        """Values that this quantizer quantizes; they share its scale."""
        return tuple(dict.fromkeys(value for value, _ in self.edges))


@dataclass(frozen=True)
class Placement:
    """What is quantized, and why the rest is not.

    Attributes:
        points: activation quantizers in graph order.
        layers: node name -> layer name of every quantized convolution and linear.
        float_layers: layer name -> reason, for weighted layers that stay float.
        attention: every attention that is quantized; none where `softmax` is "float".
        softmax: grid of their probabilities.
        pools: average pools that read quantized values.
    """

    points: tuple[QuantizationPoint, ...]
    layers: dict[str, str]
    float_layers: dict[str, str]
    attention: tuple[AttentionSite, ...] = ()
    softmax: Softmax = "float"
    pools: tuple[str, ...] = ()


def place_quantizers(
    graph: fx.Graph,
    keep_float: Sequence[str] = (),
    *,
    quantize_head: bool = True,
    left_float: Mapping[str, str] | None = None,
    softmax: Softmax = "float",
    apart: Collection[str] = (),
    pools: bool = False,
) -> Placement:
    """Decide which edges of `graph` are quantized.

    Args:
        graph: functional ATen graph with BatchNorm folded (`reptrt.models.graph.trace`).
        keep_float: layer-name patterns (`head.*`) that stay float on the user's word.
        quantize_head: whether the layers behind which no other comes are quantized too.
        left_float: layers that stay float, and why: INT8 would not make the engine faster, or costs too
            much accuracy.
        apart: concats whose sources keep scales of their own (`far_concats`).
        softmax: how to quantize attention; fused attention (`reptrt.models.expand_attention`) stays float.
        pools: whether average pools that feed a quantized layer read quantized values.
    """
    predictions = set() if quantize_head else last_layers(graph)
    reasons = dict.fromkeys(predictions, PREDICTION)
    weighted = [node for node in graph.nodes if node.target in WEIGHTED]
    why = left_float or {}
    reasons |= {node: why[layer_name(node)] for node in weighted if layer_name(node) in why}
    layers, float_layers = _choose_layers(graph, keep_float, reasons)
    edges = _Edges(apart)
    for node in graph.nodes:
        if node.name in layers:
            edges.add(node.args[0], node)
    averages = list(find_pools(graph, edges.values())) if pools else []
    for pool in averages:
        edges.add(pool.args[0], pool)
    _quantize_skips(graph, edges, layers)
    attention = [] if softmax == "float" else find_attention(graph)
    for product in (node for pair in attention for node in pair):
        for operand in operands(product):
            edges.read_quantized(operand, product)  # no layout operator ties query, key and value
    points = tuple(edges.points(graph))
    point_of = {edge: point.name for point in points for edge in point.edges}
    sites = tuple(_site(*pair, point_of) for pair in attention)
    names = tuple(pool.name for pool in averages)
    return Placement(points, layers, float_layers, sites, softmax, names)


def last_layers(graph: fx.Graph) -> set[fx.Node]:
    """Convolutions and linears behind which no other comes; the integral of DFL is none."""
    layers = {
        n for n in graph.nodes if n.target in (*WEIGHTED, *TRANSPOSED) and not _is_integral(n)
    }
    after: set[fx.Node] = set()  # nodes behind which no layer comes
    for node in reversed(graph.nodes):
        if all(user in after and user not in layers for user in node.users):
            after.add(node)
    return layers & after


def is_depthwise(layer: fx.Node) -> bool:
    """Whether each output channel of the convolution `layer` reads one channel of several."""
    source, weight = layer.args[:2]
    assert isinstance(source, fx.Node)
    assert isinstance(weight, fx.Node)
    is_convolution = layer.target is not aten.linear.default
    return is_convolution and weight.meta["val"].shape[1] == 1 < source.meta["val"].shape[1]


def _choose_layers(
    graph: fx.Graph, keep_float: Sequence[str], reasons: Mapping[fx.Node, str]
) -> tuple[dict[str, str], dict[str, str]]:
    layers: dict[str, str] = {}
    float_layers: dict[str, str] = {}
    for node in graph.nodes:
        if node.target in TRANSPOSED:
            float_layers[layer_name(node)] = "transposed convolution: INT8 rarely pays in TensorRT"
        elif node.target in WEIGHTED:
            name = layer_name(node)
            reason = _reason_to_stay_float(node, name, keep_float) or reasons.get(node)
            if reason is None:
                layers[node.name] = name
            else:
                float_layers[name] = reason
    return layers, float_layers


def _reason_to_stay_float(node: fx.Node, name: str, keep_float: Sequence[str]) -> str | None:
    weight, source = node.args[1], node.args[0]
    assert isinstance(source, fx.Node)
    if not isinstance(weight, fx.Node) or weight.op != "get_attr":
        return "its weight is computed at run time"
    for pattern in keep_float:
        if fnmatchcase(name, pattern):
            return f"the recipe keeps {pattern!r} float"
    shape = source.meta["val"].shape
    if node.target is aten.conv2d.default and all(side == 1 for side in shape[2:]):
        return "convolution on a 1x1 map, as in squeeze-and-excitation: INT8 does not pay"
    if _is_integral(node):
        return "integral over a softmax (distribution focal loss)"
    return None


def _is_integral(node: fx.Node) -> bool:
    """Whether `node` is a weighted sum of probabilities: a layer that reads a softmax."""
    source = node.args[0]
    while isinstance(source, fx.Node) and source.target in LAYOUT:
        source = source.args[0]
    return isinstance(source, fx.Node) and source.target in SOFTMAX


class _Edges:
    """Quantized (value, consumer) edges, and which values must share a scale (union-find)."""

    def __init__(self, apart: Collection[str] = ()) -> None:
        self._apart = apart  # concats with a quantizer of their own behind them
        self._edges: dict[tuple[fx.Node, fx.Node], None] = {}
        self._parent: dict[fx.Node, fx.Node] = {}

    def add(self, value: object, consumer: fx.Node) -> None:
        """Quantize what `consumer` reads, as early as the grid survives until it."""
        assert isinstance(value, fx.Node)
        self._tie(value)
        if value.target in SELECTING:
            for source in _sources(value):
                self.add(source, value)
        if value.target not in SELECTING or value.name in self._apart:
            self._edges[value, consumer] = None

    def values(self) -> set[fx.Node]:
        return {value for value, _ in self._edges}

    def read_quantized(self, value: fx.Node, consumer: fx.Node) -> None:
        """Let one more consumer read a value that is quantized already."""
        self._edges[value, consumer] = None

    def points(self, graph: fx.Graph) -> list[QuantizationPoint]:
        order = {node: index for index, node in enumerate(graph.nodes)}
        groups: dict[fx.Node, list[tuple[fx.Node, fx.Node]]] = {}
        for edge in sorted(self._edges, key=lambda e: (order[e[0]], order[e[1]])):
            groups.setdefault(self._find(edge[0]), []).append(edge)
        return [
            QuantizationPoint(edges[0][0].name, tuple((v.name, c.name) for v, c in edges))
            for edges in groups.values()
        ]

    def _tie(self, value: fx.Node) -> None:
        if keeps_grid(value) and value.name not in self._apart:
            for source in _sources(value):
                self._parent[self._find(source)] = self._find(value)
                self._tie(source)

    def _find(self, value: fx.Node) -> fx.Node:
        while self._parent.get(value, value) is not value:
            value = self._parent[value]
        return value


def keeps_grid(node: fx.Node) -> bool:
    """Whether `node` only moves, selects or joins values; the outputs of an island are new ones."""
    if node.target is getitem:
        return isinstance(node.args[0], fx.Node) and not is_island(node.args[0])
    return node.target in MOVING


def _sources(node: fx.Node) -> list[fx.Node]:
    inputs = node.args[0] if node.target is aten.cat.default else node.args[:1]
    assert isinstance(inputs, (list, tuple))
    return [source for source in inputs if isinstance(source, fx.Node)]


def _quantize_skips(graph: fx.Graph, edges: _Edges, layers: Mapping[str, str]) -> None:
    """Let residual adds read one side quantized: the convolution on the other then writes INT8."""
    quantized, depth = edges.values(), _depths(graph)
    for node in graph.nodes:
        if node.target not in ADDS:
            continue
        reads = [_behind_scaling(source, node) for source in node.args[:2]]
        nodes = [(value, reader) for value, reader in reads if isinstance(value, fx.Node)]
        skips = [(value, reader) for value, reader in nodes if value in quantized]
        if len(skips) == 2:  # one may be the branch: its convolution fuses with a float add
            skips = [(value, reader) for value, reader in skips if value.target not in WEIGHTED]
        branches = [value for value, _ in nodes if value.name in layers]
        if not skips and len(branches) == 2 and _is_quantized_next(node, quantized):
            skips = [min(nodes, key=lambda read: depth[read[0]])]
        for value, reader in skips:
            edges.read_quantized(value, reader)


def _depths(graph: fx.Graph) -> dict[fx.Node, int]:
    """Most convolutions and linears on a way from the images to each node, itself included."""
    depth: dict[fx.Node, int] = {}
    for node in graph.nodes:
        before = max((depth[source] for source in node.all_input_nodes), default=0)
        depth[node] = before + (node.target in WEIGHTED)
    return depth


def _is_quantized_next(value: fx.Node, quantized: set[fx.Node]) -> bool:
    """Whether `value` is quantized, at once or behind activations and products."""
    behind = [user for user in value.users if user.target in (*ACTIVATIONS, *SCALINGS)]
    return value in quantized or any(_is_quantized_next(user, quantized) for user in behind)


def _behind_scaling(source: object, add: fx.Node) -> tuple[object, fx.Node]:
    """`x` and the multiplication where `add` alone reads `x` times a constant, else its own edge."""
    if isinstance(source, fx.Node) and source.target in SCALINGS and len(source.users) == 1:
        factors = [factor for factor in source.args[:2] if not _is_constant(factor)]
        if len(factors) == 1:
            return factors[0], source
    return source, add


def _is_constant(value: object) -> bool:
    """Whether `value` is a number or a parameter, whatever its layout."""
    while isinstance(value, fx.Node) and value.target in LAYOUT:
        value = value.args[0]
    return not isinstance(value, fx.Node) or value.op == "get_attr"


def _site(
    scores: fx.Node, product: fx.Node, point_of: Mapping[tuple[str, str], str]
) -> AttentionSite:
    edges = [(value.name, node.name) for node in (scores, product) for value in operands(node)]
    query, key, probabilities, value = (point_of[edge] for edge in edges)
    return AttentionSite(query, key, probabilities, value, scores.name, product.name)
