"""Let FP16 convolutions take the factors that `ScaleBehindProduct` leaves behind a product.

A convolution of m x has the weight of its input channels times m. What it then reads is what the product
writes, so that TensorRT-RTX needs no kernel between the two.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from reptrt.engines.surgery.base import Pass
from reptrt.engines.surgery.forms.products import weight_dequantize
from reptrt.engines.surgery.names import Names
from reptrt.engines.surgery.qdq import constant_at, nodes_of, producer

_LARGEST = float(np.finfo(np.float16).max)
_SMALLEST = float(np.finfo(np.float16).tiny)


class FoldFactors(Pass):
    """Move factors per channel behind a quantized Conv into the FP16 Conv nodes that read them.

    Other readers keep the Mul. A fold that FP16 cannot hold is left out.
    """

    def apply(self, graph: gs.Graph) -> int:
        """Fold in place; a site is a convolution that took factors."""
        names, folded = Names(graph), 0
        for mul in nodes_of(graph, "Mul"):
            factors = channel_factors(mul)
            if factors is None:
                continue
            for reader in list(mul.outputs[0].outputs):
                weight = _folded(reader, mul.outputs[0], factors)
                if weight is not None:
                    reader.inputs[0] = mul.inputs[0]
                    reader.inputs[1] = names.constant(f"{reader.inputs[1].name}_folded", weight)
                    folded += 1
        return folded


def channel_factors(mul: gs.Node) -> np.ndarray | None:
    """The factors [channels] of a Mul behind a Conv of one weight scale, or None if it is another."""
    factors, layer = constant_at(mul, 1), producer(mul.inputs[0])
    if layer is not None and layer.op == "Relu":
        layer = producer(layer.inputs[0])
    if layer is None or layer.op != "Conv" or factors is None:
        return None
    is_per_channel = factors.ndim > 1 and factors.size == factors.shape[1] and (factors > 0).all()
    weight = weight_dequantize(layer)
    is_shared = weight is not None and weight.inputs[1].values.size == 1
    return factors.reshape(-1) if is_per_channel and is_shared else None


def _folded(reader: gs.Node, tensor: gs.Tensor, factors: np.ndarray) -> np.ndarray | None:
    """The weight of `reader` times `factors` of `tensor`, or None where it cannot take them."""
    weight = constant_at(reader, 1) if reader.op == "Conv" else None
    if weight is None or weight.dtype != np.float16 or reader.inputs[0] is not tensor:
        return None
    groups = int(reader.attrs.get("group", 1))
    by_group = factors.astype(np.float64).reshape(groups, 1, -1)
    values = weight.astype(np.float64).reshape(groups, -1, weight.shape[1], weight[0, 0].size)
    values = values * by_group[..., None]
    # All channels share the range R of `tensor`: rounding a weight to FP16's last digit (2^-25) changes
    # the result by 2^-25 R / factor, which must be below 2^-11 of the largest result, R max |weight|.
    largest, least = np.abs(values).max(), np.abs(weight).max() * factors.min()
    is_held = largest <= _LARGEST and least >= _SMALLEST
    return values.reshape(weight.shape).astype(np.float16) if is_held else None
