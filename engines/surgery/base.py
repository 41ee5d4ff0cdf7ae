"""The contract of a surgery pass: require, rewrite in place, ensure."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence

import onnx_graphsurgeon as gs

from reptrt.engines.foreign.graphs import sort_nodes

logger = logging.getLogger(__name__)


class SurgeryError(ValueError):
    """A graph that surgery cannot accept, or that a rewrite left wrong."""

    exit_code = 2


class Pass(ABC):
    """One graph rewrite. Override `apply`; `requires` and `ensures` are optional."""

    def requires(self, graph: gs.Graph) -> None:
        """Raise SurgeryError if `graph` is not a valid input."""

    @abstractmethod
    def apply(self, graph: gs.Graph) -> int:
        """Rewrite `graph` in place and return how many sites changed: 0 only where all is as it was."""

    def ensures(self, graph: gs.Graph) -> None:
        """Raise SurgeryError if the rewrite left `graph` wrong."""


def run_passes(graph: gs.Graph, passes: Sequence[Pass]) -> dict[str, int]:
    """Apply `passes` in order, in place, and return the number of changed sites per pass.

    Raises:
        SurgeryError: a pass refuses the graph, or its rewrite broke its own promise.
    """
    changed: dict[str, int] = {}
    is_clean = False
    for surgery_pass in passes:
        name = type(surgery_pass).__name__
        surgery_pass.requires(graph)
        changed[name] = surgery_pass.apply(graph)
        if changed[name] or not is_clean:
            sort_nodes(graph.cleanup())
            is_clean = True
        surgery_pass.ensures(graph)
        logger.info("%s changed %d site(s)", name, changed[name])
    return changed
