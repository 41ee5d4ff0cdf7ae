"""Parts of a network's outputs: boxes and scores in one tensor are judged one by one.

A detector joins boxes of hundreds of pixels and scores of 0..1 in one output. One signal-to-noise ratio
over both hears the boxes alone. Where a concat makes an output, what it joins are its parts; they are
followed through transposes and reshapes, and concats of concats.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from torch import fx

from reptrt.models.card import Part

aten = torch.ops.aten

_MOST_PARTS = 32
_LAYERS = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.linear.default)


def find_parts(graph: fx.Graph) -> list[tuple[Part, ...]]:
    """Parts of each output of a traced graph, in order; none where an output is one."""
    (output,) = [node for node in graph.nodes if node.op == "output"]
    found = []
    for node in torch.utils._pytree.tree_leaves(output.args[0]):
        parts = _parts_of(node) if isinstance(node, fx.Node) else [()]
        parts = list(dict.fromkeys(parts))
        found.append(tuple(parts) if 1 < len(parts) <= _MOST_PARTS else ())
    return found


def split_parts(
    outputs: Sequence[torch.Tensor], parts: Sequence[Sequence[Part]]
) -> list[torch.Tensor]:
    """The parts of every output, or the output itself where it is one."""
    return [
        cut_part(output, part)
        for output, found in zip(outputs, parts, strict=True)
        for part in found or ((),)
    ]


def cut_part(output: torch.Tensor, part: Part) -> torch.Tensor:
    """One part of an output."""
    for axis, first, last in part:
        output = output.narrow(axis, first, last - first)
    return output


def _parts_of(node: fx.Node) -> list[Part]:
    """Ranges of `node`'s axes that are joined; one empty part where nothing is."""
    shape = _shape(node)
    if shape is None or node.op != "call_function":
        return [()]
    if node.target is aten.cat.default:
        return _joined(node, len(shape))
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or (before := _shape(source)) is None:
        return [()]
    if node.target is aten.permute.default:
        order = [int(axis) % len(shape) for axis in node.args[1]]  # type: ignore[union-attr, arg-type]
        place = {old: new for new, old in enumerate(order)}
        return _move(_parts_of(source), place)
    if node.target is aten.transpose.int:
        first, second = (int(axis) % len(shape) for axis in node.args[1:3])  # type: ignore[arg-type]
        place = {axis: axis for axis in range(len(shape))} | {first: second, second: first}
        return _move(_parts_of(source), place)
    if node.target is aten.reshape.default:
        return _move(_parts_of(source), _kept_axes(before, shape))
    return [()]


def _joined(node: fx.Node, rank: int) -> list[Part]:
    """What a concat joins; tensors that are made alike, as of a pyramid's levels, are one part."""
    axis = int(node.args[1]) % rank if len(node.args) > 1 else 0  # type: ignore[arg-type]
    sources = [source for source in node.args[0] if isinstance(source, fx.Node)]  # type: ignore[union-attr]
    sizes = [shape[axis] for source in sources if (shape := _shape(source)) is not None]
    if axis == 0 or len(sizes) < len(node.args[0]) or None in sizes:  # type: ignore[arg-type]
        return [()]
    inner = [_parts_of(source) for source in sources]
    if len({_recipe(source) for source in sources}) == 1:
        is_same = all(parts == inner[0] for parts in inner)
        across = [part for part in inner[0] if all(other != axis for other, _, _ in part)]
        return across if is_same and across else [()]
    ends = list(accumulate((int(size or 0) for size in sizes), initial=0))
    return [
        _within(part, axis, first, last)
        for parts, (first, last) in zip(inner, pairwise(ends), strict=True)
        for part in parts
    ]


def _within(part: Part, axis: int, first: int, last: int) -> Part:
    """A part of what fills `first`..`last` of `axis`."""
    ranges = {at: (begin, end) for at, begin, end in part}
    begin, end = ranges.get(axis, (0, last - first))
    ranges[axis] = (first + begin, first + end)
    return tuple((at, *limits) for at, limits in sorted(ranges.items()))


def _recipe(node: fx.Node, steps: int = 8) -> str:
    """How a tensor is made, back to its layer."""
    if node.op != "call_function" or node.target in _LAYERS or not steps:
        return ""
    sources = node.all_input_nodes if node.target is aten.cat.default else node.all_input_nodes[:1]
    return f"{node.target}({','.join(_recipe(source, steps - 1) for source in sources)})"


def _move(parts: Sequence[Part], place: dict[int, int]) -> list[Part]:
    """Parts of a tensor whose axes went to `place`; what went nowhere is no boundary any more."""
    return [
        tuple((place[axis], first, last) for axis, first, last in part if axis in place)
        for part in parts
    ]


def _kept_axes(before: Sequence[int | None], after: Sequence[int | None]) -> dict[int, int]:
    """Axes that a reshape leaves alone: as long as before, and as much behind them."""
    kept: dict[int, int] = {}
    for old, side in enumerate(before):
        for new, other in enumerate(after):
            behind = (before[old + 1 :], after[new + 1 :])
            if side is None or side != other or any(None in sides for sides in behind):
                continue
            if math.prod(map(int, behind[0])) == math.prod(map(int, behind[1])):  # type: ignore[arg-type]
                kept[old] = new
    return kept


def _shape(node: fx.Node) -> list[int | None] | None:
    """Sides of a tensor; None for one that depends on the batch."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return None
    return [side if isinstance(side, int) else None for side in value.shape]
