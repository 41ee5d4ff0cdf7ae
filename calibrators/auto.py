"""Choose the calibrator that `auto` stands for."""

from __future__ import annotations

from torch import fx, nn

from reptrt.calibrators.quantized.find_attention import has_attention
from reptrt.calibrators.transformers.scale_reparam import has_norm_sites
from reptrt.models.fuse import has_reparameterizable_blocks

_OTHERS = {"best": ("repapq",), "repq-vit": ("best",), "repquant": ("best",)}
"""`repapq` keeps a baseline that is better than what it learned: nothing else is left to try."""


def other_calibrators(name: str) -> tuple[str, ...]:
    """What `auto` tries next where the calibrator `name` leaves the outputs too far from float."""
    return _OTHERS.get(name, ())


def choose_calibrator(
    network: nn.Module, graph: fx.Graph, num_bits: int = 8, *, is_merged: bool = False
) -> str:
    """Name of the calibrator that suits the network.

    Transformers (attention, and linears that read a LayerNorm) are recognised first: the fusable
    blocks of others may be mere convolutions with a BatchNorm. Measured on DeiT, MobileOne, RepVGG and YOLOv6Lite
    (docs/results.md); for mixtures of both kinds it is a rule, without a measurement.

    Args:
        network: as loaded.
        graph: `network` recorded (`reptrt.models.graph.trace`).
        num_bits: of weights or activations, whichever has fewer.
        is_merged: parallel branches were merged while it was recorded
            (`reptrt.models.graph.merged_layers`).
    """
    if is_transformer(graph):
        return "repq-vit" if num_bits == 8 else "repquant"
    is_imported = isinstance(network, fx.GraphModule)
    if is_merged or is_imported or has_reparameterizable_blocks(network):
        return "repapq"  # a graph from a file may have been re-parameterized before it was written
    return "best"


def is_transformer(graph: fx.Graph) -> bool:
    """Whether the float `graph` has attention, and linears that read a LayerNorm."""
    return has_attention(graph) and has_norm_sites(graph)
