"""Leave to FP16 what INT8 would not make faster on the target, before anything is calibrated.

The engine is priced without a GPU: TensorRT-RTX compiles each candidate, or fusion rules predict its
layers, and the cost model gives their time on the target's data sheet (docs/cost.md). Scales do not
matter for that, so activations are still uncalibrated.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
from torch import fx

from reptrt.calibrators.histogram.methods import scale_weights
from reptrt.calibrators.quantized.placement import WEIGHTED
from reptrt.engines.cost.estimate import estimate_cost
from reptrt.engines.cost.layer_times import layer_neighbours, layer_times
from reptrt.engines.cost.placement import (
    KINDS,
    ROUNDS,
    CostPlacement,
    Priced,
    place_by_cost,
)
from reptrt.engines.cost.sources import read_model
from reptrt.engines.data_sheet import DataSheet
from reptrt.engines.form import Form, form_for
from reptrt.engines.inspection.qdq_graph import read_weighted_layers
from reptrt.engines.partial import temporary_folder
from reptrt.engines.surgery import DEFAULT_PASSES, FORM_PASSES
from reptrt.engines.surgery.clean_file import clean_file
from reptrt.engines.surgery.leave_float import LeaveFloat
from reptrt.engines.target import Target
from reptrt.models.graph import layer_name
from reptrt.pipeline.engine.fp16_engine import write_fp16_onnx
from reptrt.pipeline.export.export import called_layer, export_qdq
from reptrt.pipeline.export.fix_sides import fix_sides
from reptrt.pipeline.export.prepare import Choices, Network, prepare_network
from reptrt.pipeline.run import Run

_STEPS = 3 + ROUNDS + KINDS


@dataclass(frozen=True)
class Pricing:
    """Prices variants of one exported Q/DQ graph.

    Attributes:
        qdq: every layer in INT8.
        target: where the engine will run.
        sheet: its GPU.
        batch: that is priced.
        form: of the Q/DQ graph that the target gets.
    """

    qdq: Path
    target: Target
    sheet: DataSheet
    batch: int
    form: Form

    def variant(self, float_layers: frozenset[str], *, pools: bool = False) -> Priced:
        """The engine in which `float_layers` stay FP16, and average pools unless `pools`."""
        with temporary_folder() as folder:
            path = Path(folder, "variant.onnx")
            taken = LeaveFloat(float_layers, pools=pools)
            clean_file(self.qdq, path, (taken, *DEFAULT_PASSES, *FORM_PASSES[self.form]), self.form)
            return self.file(path)

    def file(self, path: Path) -> Priced:
        """The engine of a file as it is."""
        layers = read_model(path, self.target, self.sheet).at_batch(self.batch)
        cost = estimate_cost(layers.kernels, self.sheet)
        graph = onnx.load(path, load_external_data=False).graph
        times = layer_times(layers.kernels, cost, graph)
        return Priced(cost.milliseconds, cost.megabytes, times)


@dataclass(frozen=True)
class LayerCalls:
    """The nodes of an exported file by layer: one that the network calls several times is several nodes.

    Attributes:
        layers: node -> the layer that it is a call of.
    """

    layers: Mapping[str, str]

    def of(self, layers: Collection[str]) -> frozenset[str]:
        """Nodes that are calls of `layers`."""
        return frozenset(node for node, layer in self.layers.items() if layer in layers)

    def joined(self, priced: Priced) -> Priced:
        """`priced` with the time of each layer's calls as one."""
        times: defaultdict[str, float] = defaultdict(float)
        for node, microseconds in priced.layers.items():
            times[self.layers.get(node, node)] += microseconds
        return replace(priced, layers=dict(times))

    def neighbours(self, found: Mapping[str, Collection[str]]) -> dict[str, set[str]]:
        """Neighbours of nodes as those of their layers; a layer is none of its own."""
        joined: dict[str, set[str]] = {}
        for node, others in found.items():
            layer = self.layers.get(node, node)
            joined.setdefault(layer, set()).update(self.layers.get(one, one) for one in others)
        return {layer: others - {layer} for layer, others in joined.items()}


def choose_by_cost(run: Run, sheet: DataSheet) -> CostPlacement:
    """Layers of `run` that stay FP16 on its target, whose GPU is that of `sheet`; where FP8 may be used, attention too.

    Raises:
        BuildError, CostError, UnpredictableModelError: the network gives no engine to price.
    """
    plan, card = run.plan, run.card
    steps, done = _STEPS * (1 + plan.may_use_fp8), 0

    def step(priced: Priced) -> Priced:
        nonlocal done
        done += 1
        run.progress("place by cost", min(done, steps - 1), steps)
        return priced

    with temporary_folder() as folder:
        qdq, fp16 = Path(folder, "all.onnx"), Path(folder, "fp16.onnx")
        write_fp16_onnx(run.recording.float_graph, card, fp16)
        fix_sides(fp16, card)
        form, batch = form_for(run.target.backend, half=True), card.batch_size or plan.opt_batch
        pricing = Pricing(qdq, run.target, sheet, batch, form)
        float_engine = step(pricing.file(fp16))

        def search(network: Network) -> CostPlacement:
            export_qdq(network.quantized, qdq, card, card.batch_size, precision="fp16")
            fix_sides(qdq, card)
            kinds = layer_kinds(network.float_graph.graph)
            written = read_weighted_layers(qdq)
            calls = LayerCalls({one.name: called_layer(one.name, kinds) for one in written})
            graph = onnx.load(qdq, load_external_data=False).graph
            found = place_by_cost(
                {calls.layers[one.name] for one in written if one.quantized},
                lambda kept: step(calls.joined(pricing.variant(calls.of(kept)))),
                calls.joined(float_engine),
                calls.neighbours(layer_neighbours(graph)),
                kinds,
            )
            return _with_pools(found, network, pricing, calls)

        found = search(_open_network(run, fp8_attention=False))
        if plan.may_use_fp8:
            other = search(_open_network(run, fp8_attention=True))
            if other.savings and other.milliseconds < found.milliseconds:
                found = replace(other, fp8_attention=True)
    run.progress("place by cost", steps, steps)
    return found


def _open_network(run: Run, *, fp8_attention: bool) -> Network:
    """Every layer in INT8, with scales that keep weights apart: below half a step, equal ones would be one tensor."""
    choices = Choices(pools=True, fp8_attention=fp8_attention)
    network = prepare_network(run.loaded, run.plan, run.recording, choices)
    scale_weights(network.quantized)
    return network


def _with_pools(
    placement: CostPlacement, network: Network, pricing: Pricing, calls: LayerCalls
) -> CostPlacement:
    """`placement` with its average pools in INT8, where there are some and that is faster."""
    if not network.quantized.placement.pools:
        return placement
    priced = pricing.variant(calls.of(placement.float_layers), pools=True)
    if priced.milliseconds >= placement.milliseconds:
        return placement
    return replace(placement, milliseconds=priced.milliseconds, pools=True)


def layer_kinds(graph: fx.Graph) -> dict[str, str]:
    """Layer -> the shapes of its weight and of what it reads: equal ones cost about the same."""
    layers = [node for node in graph.nodes if node.target in WEIGHTED]
    return {layer_name(node): " ".join(_shape(read) for read in node.args[:2]) for node in layers}


def _shape(read: object) -> str:
    return str(tuple(read.meta["val"].shape)) if isinstance(read, fx.Node) else ""
