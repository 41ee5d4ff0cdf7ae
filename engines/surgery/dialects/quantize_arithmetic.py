"""Fake quantization that is written out as arithmetic, as Brevitas and torch.export leave it, as pairs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from reptrt.engines.surgery.base import Pass
from reptrt.engines.surgery.names import Names
from reptrt.engines.surgery.qdq import (
    DEQUANTIZE,
    QUANTIZE,
    constant_at,
    input_at,
    nodes_of,
    producer,
)
from reptrt.engines.surgery.repair.fold_constants import FoldConstants

ROUND = "Round"
_SAME_SCALE = 1e-5  # one is often written as the reciprocal of the other
_CODES = {np.dtype(np.int8): (-128, 127), np.dtype(np.uint8): (0, 255)}
_LARGEST_SHIFT = 1 << 16


class QuantizeArithmetic(Pass):
    """Write x -> Div s -> Round -> Clip -> Mul s as QuantizeLinear -> DequantizeLinear.

    Zero points may be added and subtracted, the Clip may stand before or behind the Round, be Min and Max,
    and the scale be multiplied with as its reciprocal; scales are constants. Bounds that are narrower than
    8 bits, as -127 or 0..15, stay as a Clip before the pair. What has more than 8 bits stays arithmetic.
    """

    def apply(self, graph: gs.Graph) -> int:
        """Rewrite in place, then fold what was kept from being folded for it; a site is a Round."""
        rounds = nodes_of(graph, ROUND)
        if not rounds:
            return 0
        names = Names(graph)
        written = sum(_write(graph, names, node) for node in rounds)
        FoldConstants().apply(graph)
        return written


@dataclass(frozen=True)
class _Grid:
    """Of the codes r that a Round writes: value = (r + shift) * scale, for r in low..high.

    Attributes:
        scale: as it stands in the graph, of any shape.
        shift: that is added to the codes.
        low: least code; -inf where nothing bounds it.
        high: largest code; inf where nothing bounds it.
    """

    scale: NDArray[np.floating]
    shift: float = 0.0
    low: float = -np.inf
    high: float = np.inf


def find_fake_quantization(node: gs.Node) -> bool:
    """Whether a Round `node` is the middle of a fake quantization that becomes a pair."""
    return _find(node) is not None


def _write(graph: gs.Graph, names: Names, node: gs.Node) -> bool:
    found = _find(node)
    kind = None if found is None else _code_type(found[1])
    if found is None or kind is None:
        return False
    (source, grid, target), (dtype, zero) = found, kind
    rank = len(source.shape) if source.shape is not None else None
    axis = _axis(grid.scale, rank)
    steps = grid.scale.reshape(()) if grid.scale.size == 1 else grid.scale.ravel()
    legal, offset = _CODES[dtype], zero + grid.shift  # code = r + offset
    stem = target.name
    if (grid.low + offset, grid.high + offset) != legal:
        bounds = [(r + grid.shift) * grid.scale for r in (grid.low, grid.high)]
        source = _clip(graph, names, stem, source, bounds)
    constants = [
        names.constant(f"{stem}_scale", steps),
        names.constant(f"{stem}_zero_point", np.full(steps.shape, zero, dtype)),
    ]
    attrs = {} if steps.size == 1 else {"axis": axis}
    codes = gs.Variable(names.fresh(f"{stem}_codes"), dtype, source.shape)
    target.inputs.clear()
    target.dtype = target.dtype or steps.dtype
    name = names.fresh
    graph.nodes += [
        gs.Node(QUANTIZE, name(f"{stem}_quantize"), attrs, [source, *constants], [codes]),
        gs.Node(DEQUANTIZE, name(f"{stem}_dequantize"), dict(attrs), [codes, *constants], [target]),
    ]
    return True


def _find(node: gs.Node) -> tuple[gs.Tensor, _Grid, gs.Tensor] | None:
    """What is quantized, its grid, and the tensor that holds the values again; None where it is none."""
    before, behind = _walk_up(node), _walk_down(node)
    if before is None or behind is None:
        return None
    (source, first), (target, second) = before, behind
    if first.scale.size != second.scale.size:
        return None
    if not np.allclose(first.scale.ravel(), second.scale.ravel(), rtol=_SAME_SCALE, atol=0):
        return None
    grid = replace(
        first,
        scale=second.scale if second.scale.ndim >= first.scale.ndim else first.scale,
        shift=second.shift,
        low=max(first.low, second.low),
        high=min(first.high, second.high),
    )
    numbers = (first.shift, grid.shift, grid.low, grid.high)
    is_whole = all(np.isfinite(n) and abs(n) < _LARGEST_SHIFT and n == round(n) for n in numbers)
    if not is_whole or first.shift + grid.shift != 0 or not (grid.scale > 0).all():
        return None
    rank = None if source.shape is None else len(source.shape)
    is_weight = isinstance(source, gs.Constant) and _axis(grid.scale, rank) is not None
    if (grid.scale.size > 1 and not is_weight) or _code_type(grid) is None:
        return None
    return source, grid, target


def _code_type(grid: _Grid) -> tuple[np.dtype, int] | None:
    """Type of the codes and the zero point in it; None for more than 8 bits, or where 0 has no code."""
    zero, signed = round(-grid.shift), _CODES[np.dtype(np.int8)]
    if not grid.low <= zero <= grid.high or grid.high - grid.low > signed[1] - signed[0]:
        return None
    for dtype, (low, high) in _CODES.items():
        if low <= grid.low and grid.high <= high:
            return dtype, zero
    return np.dtype(np.int8), round(zero + signed[0] - grid.low)


def _walk_up(node: gs.Node) -> tuple[gs.Tensor, _Grid] | None:
    """What a Round's input is made of: the tensor, and scale, shift and bounds on the way."""
    low, high, shift = -np.inf, np.inf, 0.0
    tensor = node.inputs[0]
    while (writer := producer(tensor)) is not None:
        tensor, constant = _operands(writer)
        if writer.op in ("Div", "Mul") and constant is not None:
            if writer.op == "Div" and constant is writer.inputs[0]:
                return None
            return tensor, _Grid(_scale(writer.op == "Div", constant), shift, low, high)
        step = _step(writer, constant)
        if step is None:
            return None
        low, high = max(low, step.low + shift), min(high, step.high + shift)
        shift += step.shift
    return None


def _walk_down(node: gs.Node) -> tuple[gs.Tensor, _Grid] | None:
    """What becomes of a Round's output: the tensor of values again, and its grid."""
    low, high, shift = -np.inf, np.inf, 0.0
    tensor = node.outputs[0]
    while len(tensor.outputs) == 1:
        reader = tensor.outputs[0]
        _, constant = _operands(reader)
        if reader.inputs[0] is not tensor and reader.op not in ("Add", "Mul", "Min", "Max"):
            return None
        if reader.op in ("Mul", "Div") and constant is not None:
            scale = _scale(reader.op == "Mul", constant)
            return reader.outputs[0], _Grid(scale, shift, low, high)
        step = _step(reader, constant)
        if step is None:
            return None
        low, high = max(low, step.low - shift), min(high, step.high - shift)
        shift += step.shift
        tensor = reader.outputs[0]
    return None


@dataclass(frozen=True)
class _Step:
    """What one operator does to a number: clip it, then add to it."""

    shift: float = 0.0
    low: float = -np.inf
    high: float = np.inf


def _step(node: gs.Node, constant: gs.Constant | None) -> _Step | None:
    if node.op == "Identity":
        return _Step()
    if node.op == "Clip":
        bounds = [constant_at(node, index) for index in (1, 2)]
        absent = [input_at(node, index) is None for index in (1, 2)]
        if any(bound is None and not gone for bound, gone in zip(bounds, absent, strict=True)):
            return None
        ends = (node.attrs.get("min", -np.inf), node.attrs.get("max", np.inf))
        low, high = (
            float(end if bound is None else bound.item())
            for bound, end in zip(bounds, ends, strict=True)
        )
        return _Step(0.0, low, high)
    values = np.empty(0) if constant is None else np.asarray(constant.values).ravel()
    if not values.size or (values != values[0]).any():
        return None
    value = float(values[0])
    if node.op in ("Add", "Sub"):
        if node.op == "Sub" and constant is node.inputs[0]:
            return None
        return _Step(value if node.op == "Add" else -value)
    if node.op in ("Min", "Max") and len(node.inputs) == 2:  # it and a bound
        return _Step(0.0, high=value) if node.op == "Min" else _Step(0.0, low=value)
    return None


def _operands(node: gs.Node) -> tuple[gs.Tensor, gs.Constant | None]:
    """The operand of `node` that is computed, or the first, and the second of two, if it is constant."""
    first = node.inputs[0]
    second = node.inputs[1] if len(node.inputs) > 1 else None
    if isinstance(second, gs.Constant):
        return first, second
    if isinstance(first, gs.Constant) and second is not None:
        return second, first
    return first, None


def _scale(is_scale: bool, constant: gs.Constant) -> NDArray[np.floating]:
    """The step of the grid, which `constant` is, or is the reciprocal of."""
    values = np.asarray(constant.values)
    with np.errstate(divide="ignore"):
        return values if is_scale else (1 / values).astype(values.dtype)


def _axis(scale: NDArray[np.floating], rank: int | None) -> int | None:
    """The axis of a tensor with `rank` axes along which `scale` differs; None where there is not just one."""
    long = [index for index, side in enumerate(scale.shape) if side > 1]
    if rank is None or len(long) != 1 or scale.ndim > rank:
        return None
    return long[0] + rank - scale.ndim


def _clip(
    graph: gs.Graph,
    names: Names,
    stem: str,
    source: gs.Tensor,
    bounds: list[NDArray[np.floating]],
) -> gs.Tensor:
    """`source` within bounds that its new grid would not keep."""
    if isinstance(source, gs.Constant):
        values = np.clip(np.asarray(source.values), *bounds).astype(source.values.dtype)
        return names.constant(f"{stem}_weight", values)
    limits = [
        names.constant(f"{stem}_{name}", np.asarray(bound, bounds[0].dtype).reshape(()))
        for name, bound in zip(("low", "high"), bounds, strict=True)
    ]
    clipped = gs.Variable(names.fresh(f"{stem}_clipped"), source.dtype, source.shape)
    node = gs.Node("Clip", names.fresh(f"{stem}_clip"), {}, [source, *limits], [clipped])
    graph.nodes.append(node)
    return clipped
