"""Linears that make the values of an attention: each channel is compared up to a gain and an offset.

A calibrator may divide a channel of the values and multiply the column of the projection that reads it
(`reptrt.calibrators.transformers.attention_channels`): the network stays the same, and the layer's output does not.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from reptrt.engines.inspection.qdq_graph import attentions, weighted_layers

_LAYOUT = frozenset(
    ("Cast", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze")
)


def find_value_layers(fp32_onnx: Path) -> frozenset[str]:
    """Names of the weighted layers of which an attention's values consist, a bias and layout apart."""
    graph = onnx.load(fp32_onnx, load_external_data=False).graph
    layers = {layer.name for layer in weighted_layers(graph)}
    producers = {name: node for node in graph.node for name in node.output}
    constants = {tensor.name for tensor in graph.initializer}
    products = {name for attention in attentions(graph) for name in attention}
    softmaxes = {name for node in graph.node if node.op_type == "Softmax" for name in node.output}
    found = set()
    for product in graph.node:
        if product.name not in products or not softmaxes.intersection(product.input):
            continue
        node = producers.get(product.input[1])
        while node is not None and node.name not in layers:
            sources = [name for name in node.input if name not in constants]
            is_bias = node.op_type == "Add" and len(sources) == 1
            node = producers.get(sources[0]) if is_bias or node.op_type in _LAYOUT else None
        if node is not None:
            found.add(node.name)
    return frozenset(found)


class ChannelNoise:
    """Signal-to-noise ratio of one output whose channels, along the last axis, may be in other units."""

    def __init__(self) -> None:
        self._sums = np.zeros((6, 1))
        """Of 1, y, q, y y, y q and q q over positions, each [channels]: what a straight line needs."""

    def update(self, reference: NDArray[Any], test: NDArray[Any]) -> None:
        """Add one batch: two tensors [..., channels] of one shape."""
        y, q = (x.reshape(-1, x.shape[-1]).astype(np.float64) for x in (reference, test))
        with np.errstate(invalid="ignore"):
            found = [np.full(y.shape[1], len(y)), y.sum(0), q.sum(0)]
            found += [(a * b).sum(0) for a, b in ((y, y), (y, q), (q, q))]
            self._sums = self._sums + np.stack(found)

    @property
    def is_finite(self) -> bool:
        """Whether neither output holds NaN or infinity."""
        return bool(np.isfinite(self._sums).all())

    @property
    def snr_db(self) -> float:
        """10 log10(sum of reference² / sum of error²) behind the best gain and offset of each channel.

        `inf` and `-inf` as in `SignalNoise.snr_db`.
        """
        if not self.is_finite:
            return -math.inf
        count, y, q, yy, yq, qq = self._sums
        variance, covariance = qq - q * q / count, yq - y * q / count
        explained = np.divide(
            covariance**2, variance, out=np.zeros_like(variance), where=variance > 0
        )
        noise = float((yy - y * y / count - explained).clip(min=0).sum())
        signal = float(yy.sum())
        if noise == 0:
            return math.inf
        return 10 * math.log10(signal / noise) if signal > 0 else -math.inf
