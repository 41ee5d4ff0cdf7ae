"""Find parallel linear branches on a traced graph and merge them into the convolution that they equal.

The operands of a sum that read one tensor through linear operators alone are branches of it: RepVGG's
(https://arxiv.org/abs/2101.03697), ACNet's (1908.03930), DBB's (2103.13425), MobileOne's (2206.04040),
RepLKNet's (2203.06717), whoever wrote their module, and whether or not it can fuse itself. They are merged
where the merged layer multiplies no more than they do together, and only if it computes the same in float64.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import fx

from reptrt.models.branches.check import computes_the_same
from reptrt.models.branches.linear_map import (
    Convolution,
    LinearMap,
    add,
    as_convolution,
    compose,
    identity,
    scaling,
)
from reptrt.models.branches.steps import (
    CHANNELS_LAST,
    CHANNELS_OF_IMAGES,
    Reader,
    Step,
    follow,
)
from reptrt.models.branches.write import Writer
from reptrt.models.constants import Constants, owner_of, parameters_behind

logger = logging.getLogger(__name__)

aten = torch.ops.aten

_SHOWN = 8
_SUMS = (aten.add.Tensor, aten.sub.Tensor)


@dataclass(frozen=True)
class MergedLayer:
    """A layer that parallel branches were merged into.

    Attributes:
        layer: its name, which is that of its largest branch.
        branches: how many there were.
        gain: [out], of the BatchNorm that closes the largest branch which one closes; None without.
        shift: [out], of the same.
    """

    layer: str
    branches: int
    gain: torch.Tensor | None
    shift: torch.Tensor | None


@dataclass(frozen=True)
class _Operand:
    """One operand of a sum; `sign` is 1 or -1."""

    node: fx.Node
    sign: int


@dataclass(frozen=True)
class _Branch:
    """An operand as a map of the tensor that the branches read.

    Attributes:
        operand: of the sum.
        steps: from that tensor to the operand.
        map: all of them; None until it is computed.
        products: multiplications for one pixel of the output.
    """

    operand: _Operand
    steps: tuple[Step, ...]
    map: LinearMap | None = None
    products: float = 0.0

    @property
    def num_taps(self) -> int:
        """Of its kernel; 0 where it has no weight."""
        assert self.map is not None
        is_layer = any(step.is_layer for step in self.steps)
        return len(self.map.rows) * len(self.map.cols) if is_layer else 0


class _Merged(NamedTuple):
    """A `MergedLayer` that has no name yet."""

    weight: fx.Node
    branches: int
    gain: torch.Tensor | None
    shift: torch.Tensor | None


@dataclass
class _Merger:
    """Merges the sums of one graph, with channels at one axis."""

    graph_module: fx.GraphModule
    constants: Constants
    axis: int
    writer: Writer
    merged: list[_Merged]

    def merge_sum(self, root: fx.Node) -> bool:
        """Merge what can be merged of the operands of `root`; whether anything was."""
        operands = list(_operands(root, self.constants))
        refused: set[tuple[fx.Node, ...]] = set()
        found = False
        while (group := self._largest_group(operands, refused)) is not None:
            source, branches = group
            made = self._merge(root, source, branches)
            if made is None:
                refused.add(_key(source, branches))
                continue
            taken, node = made
            operands = [o for o in operands if o not in taken]
            operands.insert(0, _Operand(node, 1))
            found = True
        if found:
            _write_sum(root, operands)
            self.graph_module.graph.eliminate_dead_code()
        return found

    def _largest_group(
        self, operands: Sequence[_Operand], refused: set[tuple[fx.Node, ...]]
    ) -> tuple[fx.Node, list[_Branch]] | None:
        """The tensor that most operands are maps of, the nearest of equals, and those operands."""
        groups: dict[fx.Node, list[_Branch]] = {}
        for operand in operands:
            for source, steps in self._chain(operand.node).items():
                groups.setdefault(source, []).append(_Branch(operand, steps))
        usable = [
            (source, branches)
            for source, branches in groups.items()
            if len(branches) > 1
            and any(step.is_layer for branch in branches for step in branch.steps)
            and _key(source, branches) not in refused
        ]

        def rank(group: tuple[fx.Node, list[_Branch]]) -> tuple[int, int]:
            return len(group[1]), -sum(len(branch.steps) for branch in group[1])

        return max(usable, key=rank, default=None)

    def _chain(self, node: fx.Node) -> dict[fx.Node, tuple[Step, ...]]:
        """What `node` is a linear map of, itself first, and the steps from there; read by nobody else."""
        reader = Reader(self.graph_module, self.constants, self.axis)
        found: dict[fx.Node, tuple[Step, ...]] = {node: ()}
        steps: tuple[Step, ...] = ()
        while len(node.users) <= 1:
            step = reader.step(node)
            if step is None or _is_read_elsewhere(step):
                break
            steps, node = (step, *steps), step.source
            found[node] = steps
        return found

    def _merge(
        self, root: fx.Node, source: fx.Node, branches: Sequence[_Branch]
    ) -> tuple[list[_Operand], fx.Node] | None:
        """Put one layer in the place of `branches`; what it replaces, and it; None if not exact."""
        own = [b for branch in branches if (b := self._read(root, source, branch)) is not None]
        if len(own) < 2 or not any(branch.num_taps for branch in own):
            return None
        try:
            total = add([branch.map for branch in own if branch.map is not None])
        except ValueError:
            return None  # strides differ
        layer = as_convolution(total, *(self._size(node) for node in (source, root)))
        if layer is None or layer.weight.numel() > sum(branch.products for branch in own):
            return None
        operands = [(branch.operand.node, branch.operand.sign) for branch in own]
        whole = any(step.border is not None for branch in own for step in branch.steps)
        sizes = None if whole or self.axis == CHANNELS_LAST else total
        if not computes_the_same(self.graph_module, source, operands, layer, sizes):
            return None
        node = self._write(root, source, own, layer)
        return [branch.operand for branch in own], node

    def _read(self, root: fx.Node, source: fx.Node, branch: _Branch) -> _Branch | None:
        """`branch` with its map; None where it is not exact at the borders."""
        value = source.meta["val"]
        whole: LinearMap | None = identity(
            value.shape[self.axis], torch.empty(0, device=value.device)
        )
        products = 0.0
        for step in branch.steps:
            assert whole is not None
            products += step.map.num_products * _pixels(step.node) / _pixels(root)
            whole = follow(step, whole, sizes=self.axis == CHANNELS_OF_IMAGES)
            if whole is None:
                return None
        assert whole is not None
        if branch.operand.sign < 0:
            whole = compose(scaling(-torch.ones_like(whole.bias)), whole)
        return replace(branch, map=whole, products=products or whole.num_products)

    def _size(self, node: fx.Node) -> tuple[int, int]:
        if self.axis == CHANNELS_LAST:
            return 1, 1
        height, width = node.meta["val"].shape[2:]
        return int(height), int(width)

    def _write(
        self, root: fx.Node, source: fx.Node, branches: Sequence[_Branch], layer: Convolution
    ) -> fx.Node:
        dense = max(branches, key=lambda branch: branch.num_taps)
        weights = [step.node.args[1] for step in dense.steps if step.is_layer]
        largest = max(weights, key=lambda w: w.meta["val"].numel())  # type: ignore[union-attr]
        name = _layer_name(largest)
        is_linear = self.axis == CHANNELS_LAST
        node = self.writer.write(root, source, layer, name, is_linear=is_linear)
        self.constants.include(node.args[1:3])
        gain, shift = _closing_norm(branches)
        self.merged.append(_Merged(node.args[1], len(branches), gain, shift))  # type: ignore[arg-type]
        return node


@torch.no_grad()
def merge_branches(graph_module: fx.GraphModule) -> tuple[MergedLayer, ...]:
    """Merge all parallel linear branches of `graph_module`, in place, and say what was merged.

    Args:
        graph_module: traced network whose BatchNorms are not folded yet.
    """
    constants, writer = Constants(graph_module), Writer(graph_module)
    merged: list[_Merged] = []
    images, last = (
        _Merger(graph_module, constants, axis, writer, merged)
        for axis in (CHANNELS_OF_IMAGES, CHANNELS_LAST)
    )
    for node in list(graph_module.graph.nodes):
        if not _is_sum(node, constants) or _is_part_of_sum(node, constants):
            continue
        is_image = len(node.meta["val"].shape) == 4
        if not (is_image and images.merge_sum(node)):
            last.merge_sum(node)
    writer.name_layers()
    graph_module.delete_all_unused_submodules()
    graph_module.recompile()
    return tuple(_describe(found) for found in merged)


def describe_merged(merged: Sequence[MergedLayer]) -> str:
    """One line: how many branches became how many layers, and which."""
    if not merged:
        return "no parallel branches were found to merge"
    count, names = sum(m.branches for m in merged), [m.layer for m in merged]
    shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    layers = "layer" if len(merged) == 1 else "layers"
    return f"merged {count} parallel branches into {len(merged)} {layers}: {shown}"


def _operands(root: fx.Node, constants: Constants, sign: int = 1) -> Iterator[_Operand]:
    """The operands of nested sums that nobody else reads."""
    for index, value in enumerate(root.args[:2]):
        assert isinstance(value, fx.Node)
        own = -sign if index == 1 and root.target is aten.sub.Tensor else sign
        if _is_sum(value, constants) and _is_part_of_sum(value, constants):
            yield from _operands(value, constants, own)
        else:
            yield _Operand(value, own)


def _is_sum(node: fx.Node, constants: Constants) -> bool:
    """Whether `node` adds or subtracts two images of one shape."""
    if node.target not in _SUMS or node.kwargs or not node.users:
        return False
    shapes = [
        value.meta["val"].shape
        for value in node.args[:2]
        if isinstance(value, fx.Node) and value not in constants
    ]
    return len(shapes) == 2 and all(shape == node.meta["val"].shape for shape in shapes)


def _is_part_of_sum(node: fx.Node, constants: Constants) -> bool:
    return len(node.users) == 1 and _is_sum(next(iter(node.users)), constants)


def _is_read_elsewhere(step: Step) -> bool:
    own = {*step.inside, step.node}
    return any(user not in own for node in step.inside for user in node.users)


def _write_sum(root: fx.Node, operands: Sequence[_Operand]) -> None:
    """Let the sum of `operands`, the first of which counts as it is, stand for `root`."""
    total = operands[0].node
    for operand in operands[1:]:
        target = aten.add.Tensor if operand.sign > 0 else aten.sub.Tensor
        with root.graph.inserting_before(root):
            total = root.graph.call_function(target, (total, operand.node))
        total.meta = dict(root.meta)
    root.replace_all_uses_with(total)


def _pixels(node: fx.Node) -> float:
    shape = node.meta["val"].shape
    return float(shape[2] * shape[3]) if len(shape) == 4 else 1.0


def _key(source: fx.Node, branches: Sequence[_Branch]) -> tuple[fx.Node, ...]:
    return (source, *(branch.operand.node for branch in branches))


def _layer_name(weight: object) -> str:
    assert isinstance(weight, fx.Node)
    sources = parameters_behind(weight)
    return owner_of(sources[0]) if sources else ""


def _describe(found: _Merged) -> MergedLayer:
    name = str(found.weight.target).removesuffix(".weight")
    return MergedLayer(name, found.branches, found.gain, found.shift)


def _closing_norm(
    branches: Sequence[_Branch],
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Gain and shift of the BatchNorm behind the largest branch that one closes."""
    closed = [b for b in branches if b.num_taps and b.steps[-1].is_norm]
    if not closed:
        return None, None
    dense = max(closed, key=lambda branch: branch.num_taps)
    norm, sign = dense.steps[-1].map, dense.operand.sign
    return sign * norm.weight.view(-1), sign * norm.bias
