"""What a calibration is expected to take, before it begins: for its progress bar alone.

Times are measured on one batch. Which blocks will learn depends on scales that nobody has chosen yet; a look at a few
images with min-max scales tells most of them apart.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from reptrt.calibrators.feed import Batch, num_pixels, tensors_of
from reptrt.calibrators.quantized.quantized_model import QuantizedModel
from reptrt.calibrators.quantized.quantizers import TensorQuantizer
from reptrt.calibrators.quantized.run_nodes import activation_nodes, float_overrides, run_nodes
from reptrt.calibrators.reconstruction.blocks import Block, compared_outputs
from reptrt.calibrators.reconstruction.effort import Budget

GAINED_DB = 5.0
"""What better scales and the closed forms add to a block's SNR with min-max scales, about."""

USUAL_SHARE = 0.5
"""Of the allowed steps, where learning stops early and a block learns at all: 0.44 and 0.6 in two networks."""

_PIXELS = 4 * 224 * 224

Seconds = Mapping[fx.Node, float]
"""Node -> time of running it on one image; of a weight's quantizer, time of one call."""


@dataclass(frozen=True)
class Forecast:
    """What nodes and blocks are expected to take.

    Attributes:
        seconds: of every node.
        shares: of each block, of the steps that it may take, 0..1.
    """

    seconds: Seconds
    shares: Sequence[float]


def make_forecast(
    model: QuantizedModel, blocks: Sequence[Block], budgets: Sequence[Budget], batch: Batch
) -> Forecast:
    """Run `batch`, and few images of it again.

    Args:
        model: uncalibrated.
        blocks: of it.
        budgets: of each.
        batch: calibration images.
    """
    return Forecast(time_nodes(model, batch), expected_shares(model, blocks, budgets, batch))


@torch.no_grad()
def expected_shares(
    model: QuantizedModel, blocks: Sequence[Block], budgets: Sequence[Budget], batch: Batch
) -> list[float]:
    """Share of its steps that each block is expected to take: none where its SNR alone will do."""
    count = len(batch) if model.is_fixed else max(1, _PIXELS // num_pixels(batch))
    few = batch[:count]
    graph = model.graph_module.graph
    read = [node for node in graph.nodes if node.op == "placeholder"]
    values = dict(zip(read, tensors_of(few), strict=True))
    run_nodes(model.graph_module, activation_nodes(graph), values, float_overrides(model), len(few))
    rough = {
        node: _with_largest_value(model.quantizer_at(node))
        for node in graph.nodes
        if node.op == "call_module"
    }
    shares = []
    for block, budget in zip(blocks, budgets, strict=True):
        found = {node: values[node] for node in block.inputs}
        run_nodes(model.graph_module, block.nodes, found, rough, len(few))
        noise = [
            float((found[node] - values[node]).square().sum() / values[node].square().sum())
            for node in compared_outputs(block)
        ]
        needed = 10 ** (-(budget.enough_db - GAINED_DB) / 10)
        usual = USUAL_SHARE if len(budget.rounds) > 1 else 1.0
        shares.append(0.0 if max(noise, default=math.inf) <= needed else usual)
    return shares


def _with_largest_value(quantizer: TensorQuantizer) -> Callable[[torch.Tensor], torch.Tensor]:
    """A copy of `quantizer` that takes its range from what it reads."""
    own = copy.deepcopy(quantizer)

    def quantize(x: torch.Tensor) -> torch.Tensor:
        kept = None if own.axis is None else own.axis % x.ndim
        own.set_amax(x.abs().amax([axis for axis in range(x.ndim) if axis != kept]))
        quantized: torch.Tensor = own(x)
        return quantized

    return quantize


def time_nodes(model: QuantizedModel, batch: Batch) -> dict[fx.Node, float]:
    """Seconds that every node of `model` takes for one image of `batch`, the second time it runs.

    Nodes that do not depend on the image, as quantizers of weights: seconds of one call.
    """
    stopwatch = _Stopwatch(model.graph_module)
    with torch.no_grad():
        for _ in range(2):
            stopwatch.run(*tensors_of(batch))
    by_image = set(activation_nodes(model.graph_module.graph))
    return {
        node: spent / len(batch) if node in by_image else spent
        for node, spent in stopwatch.seconds.items()
    }


class _Stopwatch(fx.Interpreter):
    """Runs a graph, and keeps the time of each of its nodes."""

    def __init__(self, graph_module: fx.GraphModule) -> None:
        super().__init__(graph_module)
        self.seconds: dict[fx.Node, float] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run `n`; its name is that of the class it extends."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        started = time.perf_counter()
        value = super().run_node(n)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds[n] = time.perf_counter() - started
        return value
