"""Put other operators in the place of a node."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from reptrt.models.onnx_import.pieces import Fresh

Array = NDArray[Any]


class Writer:
    """Puts nodes in the place of one, and names them after it."""

    def __init__(self, graph: gs.Graph, node: gs.Node) -> None:
        self._graph, self._node, self._fresh = graph, node, Fresh(graph)

    def add(self, op: str, *inputs: gs.Tensor, dtype: type = np.float32, **attrs: object) -> Any:
        """Put a node of one output in front; return that."""
        name = self._fresh(f"{self._node.name}_{op.lower()}")
        output = gs.Variable(name, np.dtype(dtype))
        made = gs.Node(op, name, dict(attrs), list(inputs), [output])
        self._graph.nodes.insert(self._graph.nodes.index(self._node), made)
        return output

    def reshape(self, tensor: gs.Tensor, *sides: int) -> Any:
        """`tensor` [N, ...] with these sides behind the first."""
        return self.add("Reshape", tensor, self.constant(np.array([-1, *sides], np.int64)))

    def constant(self, values: Array) -> gs.Constant:
        """A constant."""
        return gs.Constant(self._fresh(f"{self._node.name}_constant"), values)

    @property
    def opset(self) -> int:
        """Of the graph."""
        return int(self._graph.opset)

    def become(self, op: str, *inputs: gs.Tensor, **attrs: object) -> None:
        """Make the node itself an `op`: it keeps its name and its output."""
        self._node.op, self._node.inputs, self._node.attrs = op, list(inputs), dict(attrs)
