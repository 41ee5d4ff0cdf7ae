"""The graph that fusion rules rewrite: ONNX nodes at first, layers of an engine at the end."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import onnx

FLOATS = frozenset({"Float", "Half", "BFloat16"})
FP8 = "FP8"
QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


@dataclass(frozen=True)
class Form:
    """How a tensor lies in memory: its datatype, and the order of its values.

    `layout` is one of "linear" (NCHW), "nhwc", "c32" (NC/32HW32), "c4" and "c2".
    """

    dtype: str
    layout: str = "linear"


@dataclass(frozen=True)
class Tensor:
    """A tensor of the network; `dims` are () for scalars, and where they are unknown.

    `values` are kept of small constants only. `quantized`: a constant behind a DequantizeLinear.
    """

    name: str
    dims: tuple[int, ...]
    form: Form
    is_constant: bool = False
    quantized: bool = False
    values: np.ndarray | None = None

    @property
    def dtype(self) -> str:
        """Datatype as TensorRT writes it: Float, Half, Int8, ..."""
        return self.form.dtype

    @property
    def channels(self) -> int:
        """Size of axis 1; 0 where there is none."""
        return self.dims[1] if len(self.dims) > 1 else 0

    @property
    def is_point(self) -> bool:
        """Whether every layout stores it alike: one position in space."""
        return all(size == 1 for size in self.dims[2:])


@dataclass(eq=False)
class Node:
    """An ONNX node, or what fusion made of several.

    Attributes:
        op: operator of the node that gave it its kind.
        inputs: tensors that are computed, in order.
        weights: constants, in order; scales and zero points of Q/DQ are not among them.
        parts: names of the ONNX nodes it computes.
        order: position of its last part in the file.
        attributes: of the ONNX node.
        scale: of a Q/DQ node: what makes two of them equal.
        codes: of a Q/DQ node: type of the codes, Int8 or FP8.
        activation: what was fused behind a convolution or product.
        layer: kind of layer where a rule has decided it; else it follows from `op`.
        skip: the tensor that a fused Add reads.
    """

    op: str
    inputs: list[str]
    outputs: list[str]
    parts: list[str]
    order: int
    weights: list[str] = field(default_factory=list)
    attributes: dict[str, onnx.AttributeProto] = field(default_factory=dict)
    scale: bytes = b""
    codes: str = ""
    activation: str = ""
    layer: str = ""
    skip: str = ""

    def ints(self, name: str, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        """Attribute `name`, a list of integers."""
        return tuple(self.attributes[name].ints) if name in self.attributes else default

    def integer(self, name: str, default: int) -> int:
        """Attribute `name`, an integer."""
        return int(self.attributes[name].i) if name in self.attributes else default

    def text(self, name: str, default: str) -> str:
        """Attribute `name`, a string."""
        return self.attributes[name].s.decode() if name in self.attributes else default


class Network:
    """Nodes and tensors, with who writes and who reads each; rules change it in place."""

    def __init__(
        self,
        nodes: Iterable[Node],
        tensors: dict[str, Tensor],
        inputs: tuple[str, ...],
        outputs: tuple[str, ...],
    ) -> None:
        self.tensors = tensors
        self.inputs, self.outputs = inputs, frozenset(outputs)
        self.output_types = {name: tensors[name].dtype for name in outputs}
        self._nodes: dict[Node, None] = {}
        self._writer: dict[str, Node] = {}
        self._readers: dict[str, dict[Node, None]] = {}
        self._fresh = 0
        for node in nodes:
            self.add(node)
        self.onnx_names = frozenset(part for node in self._nodes for part in node.parts)

    def nodes(self, *ops: str) -> Iterator[Node]:
        """The live nodes whose operator is one of `ops` (all without any), as of now."""
        for node in list(self._nodes):
            if node in self._nodes and (not ops or node.op in ops):
                yield node

    def writer(self, tensor: str) -> Node | None:
        """The node that computes `tensor`."""
        return self._writer.get(tensor)

    def readers(self, tensor: str) -> list[Node]:
        """The nodes that read `tensor`, each once."""
        return list(self._readers.get(tensor, ()))

    def only_reader(self, tensor: str) -> Node | None:
        """The one node that reads `tensor`; None where there are several, or it leaves."""
        readers = self._readers.get(tensor, {})
        if tensor in self.outputs or len(readers) != 1:
            return None
        return next(iter(readers))

    def add(self, node: Node) -> None:
        """Put `node` in; its tensors are in `tensors`."""
        self._nodes[node] = None
        for name in node.outputs:
            self._writer[name] = node
        for name in node.inputs:
            self._readers.setdefault(name, {})[node] = None

    def remove(self, node: Node) -> None:
        """Take `node` out; its outputs have no writer then, unless another took them over."""
        del self._nodes[node]
        for name in node.outputs:
            if self._writer.get(name) is node:
                del self._writer[name]
        for name in set(node.inputs):
            self._readers[name].pop(node, None)

    def rewire(self, node: Node, old: str, new: str) -> None:
        """Let `node` read `new` where it reads `old`; a graph output is no reader."""
        node.inputs = [new if name == old else name for name in node.inputs]
        node.skip = new if node.skip == old else node.skip
        self._readers[old].pop(node, None)
        self._readers.setdefault(new, {})[node] = None

    def bypass(self, node: Node) -> None:
        """Remove `node`, and let its readers read its first input; it writes no graph output."""
        source, result = node.inputs[0], node.outputs[0]
        for reader in self.readers(result):
            self.rewire(reader, result, source)
        self.remove(node)

    def absorb_reader(self, node: Node, reader: Node) -> None:
        """Let `node` also compute `reader`, the only one to read its output."""
        others = [name for name in reader.inputs if name not in node.outputs]
        self.remove(reader)
        self.remove(node)
        node.inputs = [*node.inputs, *others]
        node.weights = [*node.weights, *reader.weights]
        node.parts = [*node.parts, *reader.parts]
        node.outputs = list(reader.outputs)
        node.order = max(node.order, reader.order)
        self.add(node)

    def fresh_tensor(self, like: str, form: Form) -> str:
        """Name a new tensor with the dims of `like`."""
        self._fresh += 1
        name = f"{like}_{form.dtype}_{self._fresh}"
        self.tensors[name] = Tensor(name, self.tensors[like].dims, form)
        return name

    def set_form(self, tensor: str, form: Form) -> None:
        """Change how `tensor` lies in memory."""
        self.tensors[tensor] = replace(self.tensors[tensor], form=form)

    def in_order(self) -> list[Node]:
        """The nodes so that each follows what it reads, else as in the file."""
        waits = {
            node: sum(name in self._writer for name in set(node.inputs)) for node in self._nodes
        }
        ready = [(node.order, index, node) for index, node in enumerate(waits) if not waits[node]]
        heapq.heapify(ready)
        done: list[Node] = []
        count = len(waits)
        while ready:
            node = heapq.heappop(ready)[2]
            done.append(node)
            for name in node.outputs:
                for reader in self._readers.get(name, ()):
                    waits[reader] -= 1
                    if not waits[reader]:
                        count += 1
                        heapq.heappush(ready, (reader.order, count, reader))
        return done
