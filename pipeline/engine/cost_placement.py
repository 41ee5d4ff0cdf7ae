"""Leave to FP16 what INT8 would not make faster on the target, before anything is calibrated.

The engine is priced without a GPU: TensorRT-RTX compiles each candidate, or fusion rules predict its
layers, and the cost model gives their time on the target's data sheet (docs/cost.md). Scales do not
matter for that, so the quantizers are still uncalibrated.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx

from reptrt.engines.cost.estimate import estimate_cost
from reptrt.engines.cost.layer_times import layer_neighbours, layer_times
from reptrt.engines.cost.placement import ROUNDS, CostPlacement, Priced, place_by_cost
from reptrt.engines.cost.sources import read_model
from reptrt.engines.data_sheet import DataSheet
from reptrt.engines.form import Form, form_for
from reptrt.engines.inspection.qdq_graph import read_weighted_layers
from reptrt.engines.surgery import DEFAULT_PASSES, FORM_PASSES
from reptrt.engines.surgery.clean_file import clean_file
from reptrt.engines.surgery.leave_float import LeaveFloat
from reptrt.engines.target import Target
from reptrt.pipeline.engine.fp16_engine import write_fp16_onnx
from reptrt.pipeline.export.export import export_qdq
from reptrt.pipeline.export.fix_sides import fix_sides
from reptrt.pipeline.export.prepare import prepare_network
from reptrt.pipeline.run import Run


@dataclass(frozen=True)
class _Pricing:
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

    def variant(self, float_layers: frozenset[str]) -> Priced:
        """The engine in which `float_layers` stay FP16."""
        with TemporaryDirectory() as folder:
            path = Path(folder, "variant.onnx")
            passes = (LeaveFloat(float_layers), *DEFAULT_PASSES, *FORM_PASSES[self.form])
            clean_file(self.qdq, path, passes, self.form)
            return self.file(path)

    def file(self, path: Path) -> Priced:
        """The engine of a file as it is."""
        layers = read_model(path, self.target, self.sheet).at_batch(self.batch)
        cost = estimate_cost(layers.kernels, self.sheet)
        graph = onnx.load(path, load_external_data=False).graph
        return Priced(cost.milliseconds, layer_times(layers.kernels, cost, graph))


def choose_by_cost(run: Run, sheet: DataSheet) -> CostPlacement:
    """Layers of `run` that stay FP16 on its target, whose GPU is that of `sheet`.

    Raises:
        BuildError, CostError, UnpredictableModelError: the network gives no engine to price.
    """
    plan = run.plan
    network = prepare_network(run.loaded, plan, run.recording)
    batch = network.card.batch_size
    done = 0

    def step(priced: Priced) -> Priced:
        nonlocal done
        done += 1
        run.progress("place by cost", min(done, ROUNDS), ROUNDS + 1)
        return priced

    with TemporaryDirectory() as folder:
        qdq, fp16 = Path(folder, "all.onnx"), Path(folder, "fp16.onnx")
        export_qdq(network.quantized, qdq, network.card, batch, precision="fp16")
        write_fp16_onnx(network.float_graph, network.card, fp16)
        for path in (qdq, fp16):
            fix_sides(path, network.card)
        form = form_for(run.target.backend, half=True)
        pricing = _Pricing(qdq, run.target, sheet, batch or plan.opt_batch, form)
        layers = [one.name for one in read_weighted_layers(qdq) if one.quantized]
        graph = onnx.load(qdq, load_external_data=False).graph
        placement = place_by_cost(
            layers,
            lambda kept: step(pricing.variant(kept)),
            step(pricing.file(fp16)),
            layer_neighbours(graph),
        )
    run.progress("place by cost", ROUNDS + 1, ROUNDS + 1)
    return placement
