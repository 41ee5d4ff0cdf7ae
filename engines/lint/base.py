"""What a lint rule is, and what it finds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import onnx
import onnx_graphsurgeon as gs

from reptrt.engines.form import Form, read_form
from reptrt.engines.inspection.qdq_graph import WeightedLayer, attentions, weighted_layers
from reptrt.engines.surgery.base import Pass
from reptrt.engines.surgery.qdq import DEQUANTIZE, QUANTIZE


class Severity(str, Enum):
    """How bad a finding is, worst first."""

    ERROR = "error"  # does not parse or build, or returns wrong numbers
    SLOW = "slow"  # builds, but a layer runs in float or a fusion is lost
    ACCURACY = "accuracy"  # builds, but loses accuracy for nothing
    NOTE = "note"  # worth knowing


@dataclass(frozen=True)
class Site:
    """Where a rule is broken: a node, its operator, and what is special about this one.

    `reachable`: surgery works on the main graph, not inside If, Loop and Scan.
    """

    node: str = ""
    op: str = ""
    detail: str = ""
    reachable: bool = True


@dataclass(frozen=True)
class Finding:
    """One broken rule at one node; `node` and `op` are empty where it is the whole file."""

    rule: str
    severity: Severity
    node: str
    op: str
    reason: str
    detail: str
    remedy: str
    fixable: bool


@dataclass(frozen=True)
class LintedModel:
    """A checked ONNX file; constants of more than a megabyte may be absent from `graph`.

    Attributes:
        path: Of the file.
        proto: With shapes and types inferred.
        graph: The main graph.
        nodes: Of the main graph, then of the graphs inside its control flow.
    """

    path: Path
    proto: onnx.ModelProto
    graph: gs.Graph
    nodes: tuple[gs.Node, ...]
    _main: frozenset[int] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_main", frozenset(map(id, self.graph.nodes)))

    @cached_property
    def layers(self) -> tuple[WeightedLayer, ...]:
        """The weighted layers of the main graph."""
        return weighted_layers(self.proto.graph)

    @cached_property
    def attentions(self) -> tuple[frozenset[str], ...]:
        """The names of the nodes of each attention."""
        return attentions(self.proto.graph)

    def is_constant(self, tensor: gs.Tensor) -> bool:
        """Whether `tensor` follows from constants alone."""
        if isinstance(tensor, gs.Constant) or tensor.is_empty():
            return True
        return id(tensor) in self._computed_once

    @cached_property
    def _computed_once(self) -> set[int]:
        """`id` of each tensor that is computed from constants; nodes are in order."""
        found: set[int] = set()
        for node in self.nodes:
            has_source = node.op == "Constant" or bool(node.inputs)
            if has_source and all(
                isinstance(one, gs.Constant) or one.is_empty() or id(one) in found
                for one in node.inputs
            ):
                found.update(map(id, node.outputs))
        return found

    @property
    def opset(self) -> int:
        """Version of ONNX's own operators."""
        versions = {entry.domain: entry.version for entry in self.proto.opset_import}
        return int(versions.get("", versions.get("ai.onnx", 0)))

    @property
    def form(self) -> Form:
        """How its scales are written, as its metadata says."""
        return read_form(self.proto)

    @property
    def is_quantized(self) -> bool:
        """Whether it holds any QuantizeLinear or DequantizeLinear."""
        return any(node.op in {QUANTIZE, DEQUANTIZE} for node in self.nodes)

    def nodes_of(self, *ops: str) -> list[gs.Node]:
        """The nodes, of all graphs, whose operator is one of `ops`."""
        return [node for node in self.nodes if node.op in ops]

    def site(self, node: gs.Node, detail: str = "", reachable: bool = True) -> Site:
        """Where `node` is."""
        name = node.name or f"node_of_{node.outputs[0].name}"
        return Site(name, node.op, detail, reachable and id(node) in self._main)


class Rule(ABC):
    """One thing that TensorRT 10 or 11 refuses, runs slowly or gets wrong.

    The docstring of a rule says where it is known from: seen in a TensorRT-RTX version (whose ONNX
    parser is TensorRT's), documented by NVIDIA, or reported (owner/repository#issue).

    Attributes:
        name: What the finding is called; stable.
        severity: Of every finding.
        reason: Why it matters, in one sentence.
        remedy: What to do where the model is made.
        repaired_by: The surgery passes that repair it; empty where none does.
    """

    name: ClassVar[str]
    severity: ClassVar[Severity]
    reason: ClassVar[str]
    remedy: ClassVar[str]
    repaired_by: ClassVar[tuple[type[Pass], ...]] = ()

    @abstractmethod
    def find(self, model: LintedModel) -> Iterator[Site]:
        """Yield where `model` breaks the rule."""

    def check(self, model: LintedModel) -> Iterator[Finding]:
        """Yield the findings in `model`."""
        for site in self.find(model):
            yield Finding(
                rule=self.name,
                severity=self.severity,
                node=site.node,
                op=site.op,
                reason=self.reason,
                detail=site.detail,
                remedy=self.remedy,
                fixable=bool(self.repaired_by) and site.reachable,
            )
