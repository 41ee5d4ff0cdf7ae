"""Names for what a pass adds to a graph."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs


class Names:
    """The names in use in a graph. Make one per pass: collecting them walks the whole graph."""

    def __init__(self, graph: gs.Graph) -> None:
        self._counts: dict[str, int] = {}
        self._taken: set[str] = set(graph.tensors()) | {node.name for node in graph.nodes}

    def fresh(self, stem: str) -> str:
        """`stem`, or the first of `stem_1`, `stem_2`, ... that is free; taken from now on."""
        name, count = stem, self._counts.get(stem, 0)
        while name in self._taken:
            count += 1
            name = f"{stem}_{count}"
        self._counts[stem] = count
        self._taken.add(name)
        return name

    def constant(self, stem: str, values: np.ndarray) -> gs.Constant:
        """A constant of a fresh name."""
        return gs.Constant(self.fresh(stem), np.array(values, order="C"))
