"""A Q/DQ grid clips what lies outside it; when the grid widens, an operator must do the clipping."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from reptrt.engines.surgery.names import Names
from reptrt.engines.surgery.qdq import scale_of
from reptrt.engines.surgery.value_range import value_range

# Bounds closer than this many steps are the same bound: codes are whole steps.
_SLACK = 0.01


def keep_saturation(
    graph: gs.Graph,
    names: Names,
    quantize: gs.Node,
    bounds: tuple[float, float],
    step: float,
) -> None:
    """Clip what `quantize` reads to `bounds` before its grid becomes symmetric int8 of `step`.

    Nothing is inserted where the new grid ends at the bounds, or where the operators above keep
    the values inside them.
    """
    low, high = bounds
    known_low, known_high = value_range(quantize.inputs[0])
    needs_low = max(known_low, -128 * step) < low - _SLACK * step
    needs_high = min(known_high, 127 * step) > high + _SLACK * step
    if needs_low or needs_high:
        clips_at_zero = low == 0 and not needs_high
        _insert(graph, names, quantize, [] if clips_at_zero else [low, high])


def _insert(graph: gs.Graph, names: Names, quantize: gs.Node, bounds: list[float]) -> None:
    """Put a Clip with `bounds` before `quantize`, or a Relu where there are none."""
    stem, source, dtype = quantize.outputs[0].name, quantize.inputs[0], scale_of(quantize).dtype
    limits = [
        names.constant(f"{stem}_{name}", np.asarray(bound, dtype))
        for name, bound in zip(("low", "high"), bounds, strict=False)
    ]
    clipped = gs.Variable(names.fresh(f"{stem}_clipped"), dtype, source.shape)
    op, name = "Clip" if limits else "Relu", names.fresh(f"{stem}_clip")
    graph.nodes.append(gs.Node(op, name, inputs=[source, *limits], outputs=[clipped]))
    quantize.inputs[0] = clipped
