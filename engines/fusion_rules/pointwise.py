"""Neighbouring pointwise operators become one kernel."""

from __future__ import annotations

from typing import ClassVar

from reptrt.engines.fusion_rules.network import FLOATS, Network, Node
from reptrt.engines.fusion_rules.rule import Build, Evidence, Rule

_POINTWISE = (
    *("Abs", "Add", "And", "BatchNormalization", "Cast", "Ceil", "Celu", "Clip", "Cos", "Div"),
    *("Elu", "Equal", "Erf", "Exp", "Floor", "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid"),
    *("HardSwish", "LeakyRelu", "Less", "LessOrEqual", "Log", "Max", "Mean", "Min", "Mish", "Mod"),
    *("Mul", "Neg", "Not", "Or", "Pow", "PRelu", "Reciprocal", "Relu", "Round", "Selu"),
    *("Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Swish", "Tanh"),
    *("ThresholdedRelu", "Where", "Xor"),
)


class FuseNeighbours(Rule):
    """Guide, "PointWise fusion": adjacent pointwise layers become one, PWN(...).

    One joins the next where nothing else reads what is between them and the size stays
    (ultralytics/ultralytics#6471: PWN(PWN(PWN(Sigmoid), Mul), Add)). A Cast alone moves data and
    is no part of it.
    """

    evidence: ClassVar[Evidence] = Evidence.REPORTED

    def apply(self, network: Network, build: Build) -> None:
        """Make each chain or tree of pointwise nodes one node of kind Pointwise."""
        for node in network.in_order():
            if node.op not in _POINTWISE or not node.inputs or self._is_lone_cast(network, node):
                continue
            node.op = "Pointwise"
            for source in dict.fromkeys(node.inputs):
                self._join(network, node, source)

    def _join(self, network: Network, node: Node, source: str) -> None:
        writer = network.writer(source)
        if writer is None or writer.op != "Pointwise" or network.only_reader(source) is not node:
            return
        if network.tensors[source].dims == network.tensors[node.outputs[0]].dims:
            absorb_writer(network, node, writer)

    def _is_lone_cast(self, network: Network, node: Node) -> bool:
        source = node.inputs[0]
        if node.op != "Cast" or network.tensors[source].dtype not in FLOATS:
            return False
        writer = network.writer(source)
        joins = writer is not None and writer.op == "Pointwise"
        return not joins or node.outputs[0] in network.outputs or len(network.readers(source)) > 1


def absorb_writer(network: Network, node: Node, writer: Node) -> None:
    """Let `node` also compute `writer`, whose output it alone reads."""
    others = [name for name in node.inputs if name not in writer.outputs]
    network.remove(node)
    network.remove(writer)
    node.inputs = list(dict.fromkeys([*writer.inputs, *others]))
    node.weights = [*writer.weights, *node.weights]
    writer.parts.extend(node.parts)  # a copy for each of a long chain would be quadratic
    node.parts, writer.parts = writer.parts, []
    network.add(node)
