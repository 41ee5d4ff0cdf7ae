"""Chains: the layers between a value and the operator where all paths from it meet again.

Of an operator that joins several values, the entry is the immediate dominator: the last value that every
path from the images to it passes (Cooper, Harvey and Kennedy, "A Simple, Fast Dominance Algorithm", 2001).
What lies between is a chain if nothing of it but the join is read elsewhere: a region with a single entry
and a single exit (Johnson, Pearson and Pingali, "The Program Structure Tree", PLDI 1994). A residual branch
is one, a ShuffleNet unit up to its concat, a detection head whose two branches are concatenated. The long
paths of a neck are none, for their values are read on the way; the small ones within are.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import fx

MOST_LAYERS = 8
"""Of one chain; a longer one is not learned at once, but the chains within it are (reconstructed)."""


def find_chains(
    activations: Sequence[fx.Node], layers: Collection[fx.Node], apart: Collection[fx.Node] = ()
) -> dict[fx.Node, fx.Node]:
    """The join that ends its chain, for each layer in a chain.

    Two chains are disjoint or one is within the other; the longest of at most `MOST_LAYERS` counts.

    Args:
        activations: nodes that depend on the images, in graph order, the images first.
        layers: those of them that are quantized layers.
        apart: layers that no chain may contain.
    """
    dominators = _immediate_dominators(activations)
    tensors = set(activations)
    found: dict[fx.Node, fx.Node] = {}
    for join in activations:
        if sum(source in tensors for source in join.all_input_nodes) < 2:
            continue
        region = _between(dominators[join], join, tensors)
        own = [node for node in region if node in layers]
        fits = len(own) <= MOST_LAYERS and not any(node in apart for node in own)
        if fits and not any(is_read_outside(node, region, tensors) for node in region - {join}):
            found |= dict.fromkeys(own, join)  # a longer chain has a later join
    return found


def is_read_outside(
    node: fx.Node, inside: Collection[fx.Node], tensors: Collection[fx.Node]
) -> bool:
    """Whether the network returns `node`, or one of `tensors` that is not `inside` reads it."""
    return any(
        user.op == "output" or (user in tensors and user not in inside) for user in node.users
    )


def _immediate_dominators(activations: Sequence[fx.Node]) -> dict[fx.Node, fx.Node]:
    """The last value that every path to a node passes; the images' own is themselves."""
    images = activations[0]
    found, depth = {images: images}, {images: 0}
    for node in activations[1:]:
        sources = [source for source in node.all_input_nodes if source in found]
        common = sources[0]
        for other in sources[1:]:
            while common is not other:
                if depth[common] < depth[other]:
                    other = found[other]
                else:
                    common = found[common]
        found[node], depth[node] = common, depth[common] + 1
    return found


def _between(entry: fx.Node, join: fx.Node, tensors: Collection[fx.Node]) -> set[fx.Node]:
    """Nodes on the paths from `entry` to `join`, which it dominates; without `entry`."""
    inside: set[fx.Node] = set()
    pending = [join]
    while pending:
        node = pending.pop()
        if node is not entry and node not in inside:
            inside.add(node)
            pending += [source for source in node.all_input_nodes if source in tensors]
    return inside
