"""The tail of a network: what comes behind its last layers and sorts, selects or decides.

Decoding with top-k, suppression of boxes, thresholds: their outputs jump where their inputs move a
little, and rows change places, so nothing can be compared behind them. The network is cut in front of
the tail: import is checked there, noise is measured there, and calibrators aim there. Export puts the
tail back as it was. What only computes (a softmax, a box from distances) stays with the network.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import torch

from reptrt.engines.foreign.graphs import sort_nodes
from reptrt.models.onnx_import.data import OnnxFileError
from reptrt.models.onnx_import.islands import IslandNote, Values, op_types, sum_weights
from reptrt.models.onnx_import.pieces import boundary, extract, makers
from reptrt.models.onnx_import.values import run_onnx_feeds


@dataclass(frozen=True)
class Tail:
    """The end of a network, for ONNX Runtime and for export.

    Attributes:
        model: Bytes of it as a ModelProto in export's opset.
        inputs: Tensors that it reads, in the model's order.
        cut: Outputs of the network in front of it: the file's that are ready there, then `inputs`.
        outputs: The file's outputs in order; some may be in `cut`.
        sources: Names that it gives the network's inputs, in order, in case it reads them.
        note: For the report.
    """

    model: bytes
    inputs: tuple[str, ...]
    cut: tuple[str, ...]
    outputs: tuple[str, ...]
    sources: tuple[str, ...]
    note: IslandNote

    def run(
        self, inputs: Sequence[torch.Tensor], values: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        """The file's outputs from those at the cut and the network's inputs, by ONNX Runtime."""
        known = {name: tensor.cpu().numpy() for name, tensor in zip(self.cut, values, strict=True)}
        read = zip(self.sources, inputs, strict=True)
        feeds = {**known, **{name: tensor.cpu().numpy() for name, tensor in read}}
        proto = onnx.load_model_from_string(self.model)
        made = run_onnx_feeds(proto, {name: feeds[name] for name in self.inputs})
        return [torch.from_numpy(np.array((made | known)[name])) for name in self.outputs]


def down_to_floats(graph: gs.Graph, tail: Collection[str], values: Values) -> set[str]:
    """The nodes `tail`, and what only they read of decisions and counts: the cut is of floats, where it can be."""
    made_by, found = makers(graph), set(tail)
    kept = {tensor.name for tensor in graph.outputs}
    while True:
        reads = boundary(graph, found)[0]
        known = values.of(reads)[0]
        more = {
            made_by[name].name
            for name in reads
            if name in made_by and name not in kept and known[name].dtype.kind != "f"
            and all(reader.name in found for t in made_by[name].outputs for reader in t.outputs)
        }  # fmt: skip
        if not more:
            is_empty = not made_by.keys() & {*reads, *(kept - set(boundary(graph, found)[1]))}
            return set(tail) if is_empty else found
        found |= more


def split_tail(
    graph: gs.Graph, names: Collection[str], refused: Mapping[str, str], values: Values
) -> Tail | None:
    """Take the nodes called `names` off the end of `graph`, in place; None where there are none.

    `refused` says of nodes why they are not imported.

    Raises:
        OnnxFileError: nothing is left in front of them.
    """
    if not names:
        return None
    reads, made = boundary(graph, names)
    sources = tuple(tensor.name for tensor in graph.inputs)
    outputs = tuple(tensor.name for tensor in graph.outputs)
    cut = list(
        dict.fromkeys(
            [*(n for n in outputs if n not in made), *(n for n in reads if n not in sources)]
        )
    )
    if not cut:
        raise OnnxFileError("nothing but sorting and selecting reads its inputs")
    examples = values.of([*reads, *made])[0]
    piece = extract(graph, reads, made, examples)
    members = [node for node in graph.nodes if node.name in names]
    note = IslandNote(
        tuple(node.name for node in members),
        op_types(members),
        refused.get(members[0].name, "sorts, selects or decides"),
        sum_weights(piece),
        is_tail=True,
    )
    tensors = graph.tensors()
    graph.outputs = [tensors[name] for name in cut]
    for node in members:
        node.outputs.clear()
        graph.nodes.remove(node)
    sort_nodes(graph.cleanup())
    return Tail(piece.SerializeToString(), tuple(reads), tuple(cut), outputs, sources, note)
