"""Cut a piece out of a canonical graph: a model of its own, and what goes in and comes out."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from reptrt.engines.foreign.graphs import sort_nodes
from reptrt.models.onnx_import.operators import DOMAIN
from reptrt.models.onnx_import.upgrade import to_export_opset
from reptrt.models.onnx_import.values import BATCH

Array = NDArray[Any]
REPEAT = "RepeatBatch"
COUNTING = {
    "NonMaxSuppression", "NonZero", "Compress", "Unique", "If", "Loop", "Scan", "SequenceConstruct",
    "SequenceEmpty", "SequenceInsert", "SplitToSequence", "SequenceAt", "SequenceErase",
    "ConcatFromSequence", "SequenceLength", "SequenceMap", "Optional", "OptionalGetElement",
}  # fmt: skip
"""Operators whose outputs have sizes that depend on pixels: what follows has no fixed shape."""

_SIZED = {
    "Reshape",
    "Expand",
    "Slice",
    "Tile",
    "Resize",
    "Upsample",
    "Pad",
    "Split",
    "CenterCropPad",
}
_ALL_SIZES = {"Range", "ConstantOfShape"}


def tensors_read(node: gs.Node) -> list[gs.Tensor]:
    """Inputs of `node`, and what its subgraphs read from outside."""
    found = [tensor for tensor in node.inputs if tensor.name]
    for value in node.attrs.values():
        if isinstance(value, gs.Graph):
            found += value._foreign_tensors().values()
    return found


class Fresh:
    """Names that a graph does not use: called with a wish, it returns that or the first free one after it."""

    def __init__(self, graph: gs.Graph) -> None:
        self._taken = set(graph.tensors()) | {node.name for node in graph.nodes}

    def __call__(self, wish: str) -> str:
        """`wish`, or `wish_2`, ...; taken from now on."""
        name, count = wish, 1
        while name in self._taken:
            count += 1
            name = f"{wish}_{count}"
        self._taken.add(name)
        return name


def makers(graph: gs.Graph) -> dict[str, gs.Node]:
    """Tensor -> the node that makes it."""
    return {tensor.name: node for node in graph.nodes for tensor in node.outputs if tensor.name}


def batch_source(graph: gs.Graph) -> gs.Tensor:
    """The input whose first side is the batch; the first input where none has one."""
    batched = (tensor for tensor in graph.inputs if list(tensor.shape or ())[:1] == [BATCH])
    return next(batched, graph.inputs[0])


def pixel_tensors(graph: gs.Graph) -> set[str]:
    """Names of the tensors that depend on what is read (pixels), not only on how many there are.

    A shape does where it counts what was found.
    """
    found = {tensor.name for tensor in graph.inputs}
    counted: set[str] = set()
    for node in graph.nodes:
        read = {tensor.name for tensor in tensors_read(node)}
        if not read & (counted if node.op in ("Shape", "Size") else found):
            continue
        made = {tensor.name for tensor in node.outputs if tensor.name}
        found |= made
        if read & counted or is_sized_by_pixels(node, found):
            counted |= made
    return found


def is_sized_by_pixels(node: gs.Node, pixels: Collection[str]) -> bool:
    """Whether the shape of what `node` makes depends on pixels."""
    sizes = node.inputs[1:] if node.op in _SIZED else node.inputs if node.op in _ALL_SIZES else []
    return node.op in COUNTING or any(tensor.name in pixels for tensor in sizes)


def boundary(graph: gs.Graph, members: Collection[str]) -> tuple[list[str], list[str]]:
    """Tensors that nodes called `members` read from others, and those that others read of them.

    What only repeats a constant for the batch belongs to the piece that reads it.
    """
    made_by = makers(graph)
    outside = {tensor.name for tensor in graph.outputs}
    reads: dict[str, None] = {}
    for node in graph.nodes:
        for tensor in tensors_read(node):
            maker = made_by.get(tensor.name)
            if node.name not in members:
                outside.add(tensor.name)
            elif isinstance(tensor, gs.Constant) or (maker and maker.name in members):
                continue
            elif maker is not None and maker.op == REPEAT:
                reads[maker.inputs[0].name] = None
            else:
                reads[tensor.name] = None
    made = [t.name for node in graph.nodes if node.name in members for t in node.outputs if t.name]
    return list(reads), [name for name in made if name in outside]


def extract(
    graph: gs.Graph, inputs: Iterable[str], outputs: Iterable[str], examples: Mapping[str, Array]
) -> onnx.ModelProto:
    """The nodes between two sets of tensors as a model, in the opset that export writes.

    Args:
        graph: canonical; stays as it is.
        inputs: tensors that the piece is given.
        outputs: tensors that it makes.
        examples: values of them for one image; they tell types and ranks.
    """
    piece = graph.copy()
    tensors = piece.tensors()
    piece.inputs = [tensors[name] for name in inputs]
    piece.outputs = [tensors[name] for name in outputs]
    for tensor in piece.inputs:
        tensor.inputs.clear()
    repeat_with_operators(piece)
    sort_nodes(piece.cleanup())
    for tensor in [*piece.inputs, *piece.outputs]:
        example = examples[tensor.name]
        tensor.dtype, tensor.shape = example.dtype, [None] * example.ndim
    return to_export_opset(gs.export_onnx(piece, do_type_check=False))


def repeat_with_operators(graph: gs.Graph) -> gs.Graph:
    """Write every RepeatBatch of `graph` with ONNX's own operators, in place."""
    for node in [node for node in graph.nodes if node.op == REPEAT]:
        _forget_shape(node.outputs[0])
        images, value = node.inputs
        stem, rank = node.name, value.values.ndim
        shape, batch, repeats = (
            gs.Variable(f"{stem}_{kind}", np.int64) for kind in ("shape", "batch", "repeats")
        )
        first = gs.Constant(f"{stem}_first", np.zeros(1, np.int64))
        ones = gs.Constant(f"{stem}_ones", np.ones(rank - 1, np.int64))
        output = node.outputs[0]
        node.outputs.clear()
        node.inputs.clear()
        graph.nodes.remove(node)
        graph.nodes.extend(
            [
                gs.Node("Shape", f"{stem}_of_images", inputs=[images], outputs=[shape]),
                gs.Node("Gather", f"{stem}_of_shape", inputs=[shape, first], outputs=[batch]),
                gs.Node("Concat", f"{stem}_join", {"axis": 0}, inputs=[batch, ones],
                        outputs=[repeats]),
                gs.Node("Tile", f"{stem}_tile", inputs=[value, repeats], outputs=[output]),
            ]
        )  # fmt: skip
    return graph


def _forget_shape(repeated: gs.Tensor) -> None:
    """Of what is repeated, and of its Transpose: it is stated for one image, and who runs the graph would believe it."""
    turned = [
        made for reader in repeated.outputs if reader.op == "Transpose" for made in reader.outputs
    ]
    for tensor in (repeated, *turned):
        tensor.shape = None


def is_own(node: gs.Node) -> bool:
    """Whether `node` is of this project, not of the file."""
    return bool(node.domain == DOMAIN)
