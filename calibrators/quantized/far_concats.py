"""Concats whose sources have ranges too far apart for one scale.

Codes that a concat joins need one scale, or another pair behind it. One scale is the cheaper: TensorRT
then moves bytes. But the narrower source, and every layer that reads it, loses 20 log10(wide / narrow) dB:
a convolution behind a narrow skip connection fell from 46 to 18 dB. So above `LARGEST_RATIO` each source
keeps its own scale, and the concat is quantized again behind.
"""

from __future__ import annotations

import torch
from torch import fx

from reptrt.calibrators.feed import Batch, tensors_of

aten = torch.ops.aten

LARGEST_RATIO = 4.0
"""Of the largest magnitudes of what one scale may hold: 12 dB, two of eight bits. As
`reptrt.engines.surgery.repair.tie_concat_scales` has it."""


@torch.no_grad()
def find_far_concats(graph_module: fx.GraphModule, batch: Batch) -> list[str]:
    """Names of such concats of a traced float network, in graph order.

    Args:
        graph_module: `reptrt.models.graph.trace`.
        batch: of calibration samples.
    """
    recorder = _Ranges(graph_module)
    recorder.run(*tensors_of(batch))
    return recorder.far


class _Ranges(fx.Interpreter):
    """Runs a graph and looks at what its concats join."""

    def __init__(self, graph_module: fx.GraphModule) -> None:
        super().__init__(graph_module)
        self.far: list[str] = []

    def run_node(self, node: fx.Node) -> object:
        """Run one node; compare the sources of a concat."""
        if node.target is aten.cat.default:
            tensors = [self.env[s] for s in node.args[0] if isinstance(s, fx.Node)]  # type: ignore[union-attr]
            largest = [
                float(tensor.abs().amax())
                for tensor in tensors
                if tensor.numel() and tensor.is_floating_point()
            ]
            live = [value for value in largest if value > 0]
            if live and max(live) > LARGEST_RATIO * min(live):
                self.far.append(node.name)
        return super().run_node(node)
