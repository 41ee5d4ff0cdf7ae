"""A Pad with -inf in front of a MaxPool, as Keras and Paddle write one-sided padding: the MaxPool pads itself.

No grid holds -inf, and calibration would read it.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

_LEAST = -1e30


def absorb_infinite_pads(graph: gs.Graph) -> int:
    """Do so for every MaxPool of `graph`, in place; return for how many."""
    return sum(_absorb(graph, node) for node in graph.nodes if node.op == "MaxPool")


def _absorb(graph: gs.Graph, pool: gs.Node) -> bool:
    source = pool.inputs[0]
    padder = source.inputs[0] if source.inputs else None
    is_shared = len(source.outputs) != 1 or any(one is source for one in graph.outputs)
    if padder is None or padder.op != "Pad" or is_shared:
        return False
    pads, rank = _infinite_pads(padder), len(pool.attrs["kernel_shape"])
    is_automatic = pool.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    if len(pads) != 2 * (rank + 2) or min(pads) < 0 or is_automatic:
        return False
    begins, ends = pads[: rank + 2], pads[rank + 2 :]
    if any(begins[:2] + ends[:2]):
        return False
    own = pool.attrs.get("pads", [0] * 2 * rank)
    both = [a + b for a, b in zip(own, begins[2:] + ends[2:], strict=True)]
    if any(side >= size for side, size in zip(both, 2 * pool.attrs["kernel_shape"], strict=True)):
        return False  # a window of nothing else
    pool.attrs["pads"] = both
    pool.inputs[0] = padder.inputs[0]
    return True


def _infinite_pads(padder: gs.Node) -> list[int]:
    """Begins and ends of a Pad by constant -inf, or by as good as that; none of another one."""
    stated = [one for one in padder.inputs[1:] if one.name]  # PyTorch names none for a value of 0
    if not all(isinstance(one, gs.Constant) for one in stated) or len(padder.inputs) > 3:
        return []
    pads = stated[0].values if stated else padder.attrs.get("pads", ())
    value = stated[1].values if stated[1:] else padder.attrs.get("value", 0.0)
    is_constant = padder.attrs.get("mode", "constant") == "constant"
    is_least = is_constant and np.size(value) == 1 and float(np.reshape(value, -1)[0]) < _LEAST
    return [int(side) for side in pads] if is_least else []
