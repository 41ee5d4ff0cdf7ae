"""A quantized network whose float remainder is rounded to FP16, as the exported file computes it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx
from torch.utils._pytree import tree_leaves

from reptrt.calibrators.feed import Batch, tensors_of
from reptrt.calibrators.quantized.quantized_model import QuantizedModel

_LARGEST = torch.finfo(torch.float16).max


@dataclass(frozen=True)
class HalfRest(QuantizedModel):
    """`QuantizedModel` that rounds what every operator makes; it shares the quantizers of the one that it is made of."""

    @staticmethod
    def of(model: QuantizedModel) -> HalfRest:
        """The same network, with the same quantizers."""
        return HalfRest(**vars(model))

    def __call__(self, batch: Batch) -> tuple[torch.Tensor, ...]:
        """Run on images [N, 3, H, W], or on other inputs; always a tuple of outputs."""
        return tuple(tree_leaves(_Rounded(self.graph_module).run(*tensors_of(batch))))


class _Rounded(fx.Interpreter):
    """Rounds float values to FP16; what is larger than that holds, as masks of attention are, becomes its largest."""

    def run_node(self, node: fx.Node) -> object:
        """Run one node and round what it makes."""
        made = super().run_node(node)
        return made if node.op == "output" else fx.node.map_aggregate(made, _round)  # type: ignore[arg-type]


def _round(value: object) -> object:
    if isinstance(value, torch.Tensor) and value.dtype == torch.float32:
        return value.clamp(-_LARGEST, _LARGEST).half().float()
    return value
