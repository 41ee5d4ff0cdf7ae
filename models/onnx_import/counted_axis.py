"""Which axis of a tensor counts images, followed through a graph that was written for so many of them.

Exports with sequences in front ([T, N, C]) and windows ([N * windows, T, C]) count them elsewhere than in
the first axis, or in one together with something else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_graphsurgeon as gs

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Place:
    """Where images are counted: `axis`, whose side is `before` x images x others, row by row.

    `merged` axes of side 1, as of a single query in front, became one with it.
    """

    axis: int
    before: int = 1
    merged: int = 0


def moved_place(
    node: gs.Node,
    read: Sequence[gs.Tensor],
    places: Mapping[str, Place],
    shapes: Mapping[str, Shape],
    batch: int,
) -> Place:
    """Where the outputs of `node` count images.

    Args:
        node: that reads them.
        read: its inputs that have images.
        places: of these, by name.
        shapes: of tensors for `batch` images, as far as they are known.
        batch: images that the shapes are for.
    """
    source = max(read, key=lambda tensor: len(shapes.get(tensor.name, ())))
    place = places[source.name]
    before = shapes.get(source.name)
    after = shapes.get(node.outputs[0].name) if node.outputs else None
    if before is None or after is None or place.axis >= len(before):
        return place
    if node.op == "Transpose":
        order = list(node.attrs.get("perm", reversed(range(len(before)))))
        return replace(place, axis=order.index(place.axis))
    if node.op in ("Reshape", "Flatten"):
        return _place_in_rows(before, after, place, batch)
    if node.op == "Unsqueeze":
        kept = sorted(set(range(len(after))) - {axis % len(after) for axis in _named_axes(node)})
        return replace(place, axis=kept[place.axis])
    if node.op == "Einsum":
        return replace(place, axis=_axis_behind_einsum(node, source, place.axis))
    if node.op == "Gather" and len(after) > len(before):
        is_behind = node.attrs.get("axis", 0) % len(before) < place.axis
        return replace(place, axis=place.axis + is_behind * (len(after) - len(before)))
    if len(after) < len(before):  # by a Gather, a Squeeze or a reduction
        ahead = [axis for axis in _named_axes(node) if axis % len(before) < place.axis]
        return replace(place, axis=place.axis - min(len(ahead), place.axis))
    return replace(place, axis=place.axis + len(after) - len(before))


def _axis_behind_einsum(node: gs.Node, source: gs.Tensor, axis: int) -> int:
    """Where an Einsum puts `axis` of `source`: where its letter is; the same where that is not written."""
    terms, _, made = str(node.attrs.get("equation", "")).replace(" ", "").partition("->")
    term = terms.split(",")[next(i for i, one in enumerate(node.inputs) if one is source)]
    letter = "" if "." in terms else term[axis : axis + 1]
    return made.index(letter) if letter and letter in made else axis


def _named_axes(node: gs.Node) -> list[int]:
    """Axes that `node` adds or takes away."""
    is_listed = node.op in ("Squeeze", "Unsqueeze") or node.op.startswith("Reduce")
    given = node.inputs[1] if is_listed and len(node.inputs) > 1 else None
    if isinstance(given, gs.Constant):
        return [int(axis) for axis in np.ravel(given.values)]
    return list(node.attrs.get("axes", [node.attrs.get("axis", 0)]))


def _place_in_rows(before: Shape, after: Shape, place: Place, batch: int) -> Place:
    """The same place in another shape of the same elements in the same order.

    Where two axes would do, it is not the last one, which holds features, images come first in it, and
    as many axes of side 1 are in front as were merged with it.
    """
    ahead = math.prod(before[: place.axis]) * place.before
    found = []
    for axis, side in enumerate(after):
        outer = math.prod(after[:axis])
        inside = ahead // max(outer, 1)
        if outer and inside * outer == ahead and inside and side % (inside * batch) == 0:
            found.append(Place(axis, inside))
    if not found:
        return Place(0)
    wanted = place.axis + place.merged

    def unlikely(one: Place) -> tuple[bool, bool, bool]:
        return one.axis == len(after) - 1, one.before > 1, one.axis != wanted

    chosen = min(found, key=unlikely)
    return replace(chosen, merged=max(0, wanted - chosen.axis) if chosen.before == 1 else 0)
