"""Padding of convolutions and pooling, said plainly: PyTorch pads both sides alike.

Automatic padding becomes numbers. A one-sided rest is done by a Pad in front of a convolution, by
rounding up the size of a pooling's output, and by cutting what a transposed convolution has too much.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from reptrt.models.onnx_import.canonical import CanonicalGraph
from reptrt.models.onnx_import.data import OnnxFileError

_LAST = np.iinfo(np.int64).max


def cannot(node: gs.Node, why: str) -> OnnxFileError:
    """What to raise where no importer takes `node` as it is."""
    return OnnxFileError(f"{node.op} {node.name!r} {why}")


def pad(canonical: CanonicalGraph, node: gs.Node) -> None:
    """Leave symmetric padding alone in a convolution or pooling, in place.

    Raises:
        OnnxFileError: PyTorch has no such padding.
    """
    kernel = node.attrs.get("kernel_shape") or node.inputs[1].shape[2:]
    rank = len(kernel)
    node.attrs["kernel_shape"] = list(kernel)
    if node.op == "ConvTranspose":
        _pad_transposed(canonical, node, rank)
        return
    automatic = node.attrs.pop("auto_pad", "NOTSET")
    pads = list(node.attrs.get("pads", [0] * 2 * rank))
    if automatic in ("SAME_UPPER", "SAME_LOWER"):
        pads = _same_pads(canonical, node, rank, automatic == "SAME_UPPER")
    if automatic == "VALID":
        pads = [0] * 2 * rank
    node.attrs["pads"] = pads
    if pads[:rank] == pads[rank:]:
        return
    averages_padding = bool(node.attrs.get("count_include_pad", 0))
    if node.op == "MaxPool" or (node.op == "AveragePool" and not averages_padding):
        _round_up(canonical, node, rank)
        return
    _pad_before(canonical, node, rank)


def _pad_before(canonical: CanonicalGraph, node: gs.Node, rank: int) -> None:
    """Pad with zeros in front of `node`."""
    pads = node.attrs["pads"]
    begins, ends = pads[:rank], pads[rank:]
    node.attrs["pads"] = [0] * 2 * rank
    padded = gs.Variable(f"{node.name}_padded", np.float32)
    source = canonical.shapes[node.inputs[0].name]
    sides = [s + a + b for s, a, b in zip(source[2:], begins, ends, strict=True)]
    canonical.shapes[padded.name] = (*source[:2], *sides)
    first = gs.Node("Pad", f"{node.name}_pad", inputs=[node.inputs[0]], outputs=[padded])
    first.attrs = {"pads": [0, 0, *begins, 0, 0, *ends], "value": 0.0}
    node.inputs[0] = padded
    canonical.graph.nodes.insert(canonical.graph.nodes.index(node), first)


def _round_up(canonical: CanonicalGraph, node: gs.Node, rank: int) -> None:
    """Windows that reach beyond the end are cut there, as a longer padding would have it."""
    pads = node.attrs["pads"]
    kernel, rounds = node.attrs["kernel_shape"], bool(node.attrs.get("ceil_mode"))
    strides, dilations = (node.attrs.get(key, [1] * rank) for key in ("strides", "dilations"))
    sides = canonical.shapes[node.inputs[0].name][2:]
    for axis in range(rank):
        begin, end, stride = pads[axis], pads[axis + rank], strides[axis]
        reach = (kernel[axis] - 1) * dilations[axis] + 1
        free = sides[axis] + begin + end - reach
        wanted = -(-free // stride) + 1 if rounds else free // stride + 1
        found = -(-(sides[axis] + 2 * begin - reach) // stride) + 1
        if (found - 1) * stride >= sides[axis] + begin:  # a window of nothing but padding
            found -= 1
        if wanted != found or 2 * begin > kernel[axis]:
            raise cannot(node, "pads one side alone")
    node.attrs["pads"], node.attrs["ceil_mode"] = [*pads[:rank], *pads[:rank]], 1


def _same_pads(canonical: CanonicalGraph, node: gs.Node, rank: int, upper: bool) -> list[int]:
    """Pads that keep ceil(side / stride), the odd one behind (`upper`) or before."""
    sides = canonical.shapes[node.inputs[0].name][2:]
    kernel = node.attrs["kernel_shape"]
    strides, dilations = (node.attrs.get(key, [1] * rank) for key in ("strides", "dilations"))
    begins, ends = [], []
    for side, extent, stride, dilation in zip(sides, kernel, strides, dilations, strict=True):
        reach = (-(-side // stride) - 1) * stride + (extent - 1) * dilation + 1
        total = max(reach - side, 0)
        begins.append(total // 2 if upper else total - total // 2)
        ends.append(total - begins[-1])
    return begins + ends


def _pad_transposed(canonical: CanonicalGraph, node: gs.Node, rank: int) -> None:
    """A transposed convolution's padding is what it cuts off; an uneven rest is cut behind it."""
    begins, ends = _transposed_pads(canonical, node, rank)
    if min(*begins, *ends) < 0:
        raise cannot(node, "makes a larger output than its kernel reaches")
    both = [min(pair) for pair in zip(begins, ends, strict=True)]
    node.attrs["pads"] = [*both, *both]
    if begins == ends:
        return
    whole, output = gs.Variable(f"{node.name}_whole", np.float32), node.outputs[0]
    node.outputs = [whole]
    starts = [begin - side for begin, side in zip(begins, both, strict=True)]
    stops = [side - end or _LAST for end, side in zip(ends, both, strict=True)]
    limits = {"starts": starts, "ends": stops, "axes": list(range(2, 2 + rank))}
    constants = [
        gs.Constant(f"{node.name}_{name}", np.array(values, np.int64))
        for name, values in limits.items()
    ]
    cut = gs.Node("Slice", f"{node.name}_cut", inputs=[whole, *constants], outputs=[output])
    canonical.graph.nodes.insert(canonical.graph.nodes.index(node) + 1, cut)


def _transposed_pads(
    canonical: CanonicalGraph, node: gs.Node, rank: int
) -> tuple[list[int], list[int]]:
    """What is cut off at the beginnings and the ends; ONNX's rules for a stated size."""
    automatic = node.attrs.pop("auto_pad", "NOTSET")
    stated = node.attrs.pop("output_shape", None)
    pads = list(node.attrs.get("pads", [0] * 2 * rank))
    if automatic == "VALID" or (automatic == "NOTSET" and stated is None):
        pads = [0] * 2 * rank if automatic == "VALID" else pads
        return pads[:rank], pads[rank:]
    sides = canonical.shapes[node.inputs[0].name][2:]
    strides, dilations = (node.attrs.get(key, [1] * rank) for key in ("strides", "dilations"))
    extra = node.attrs.get("output_padding", [0] * rank)
    wanted = stated or [side * stride for side, stride in zip(sides, strides, strict=True)]
    begins, ends = [], []
    for axis in range(rank):
        reach = (node.attrs["kernel_shape"][axis] - 1) * dilations[axis] + 1
        total = strides[axis] * (sides[axis] - 1) + extra[axis] + reach - wanted[axis]
        half = total // 2
        begins.append(half if automatic == "SAME_UPPER" else total - half)
        ends.append(total - begins[-1])
    return begins, ends
