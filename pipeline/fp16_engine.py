"""The same network as an FP16 engine: what an INT8 engine has to beat."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path

from torch import fx

from reptrt.engines.build.builder import build_engine
from reptrt.engines.outputs.detection import Suppression
from reptrt.engines.surgery import clean
from reptrt.engines.target import Backend, load_backend
from reptrt.models.card import ModelCard
from reptrt.models.onnx_import.tail import Tail
from reptrt.pipeline.build_options import build_inputs, build_options
from reptrt.pipeline.export.append_nms import append_end2end
from reptrt.pipeline.export.export import export_float
from reptrt.pipeline.export.prepare import code_sha256, fixed_batch
from reptrt.pipeline.run import Run
from reptrt.pipeline.validation.validate import runs_on_gpu
from reptrt.pipeline.workspace import discard


def make_rival(run: Run) -> None:
    """Write the float network in FP16 and its engine, built as INT8's, where that runs here.

    Raises:
        BuildError: TensorRT does not build it.
    """
    recipe, loaded, workspace, target = run.recipe, run.loaded, run.workspace, run.target
    if not runs_on_gpu(target):
        discard(workspace.fp16_onnx)
        discard(workspace.fp16_engine)
        return
    inputs = {
        "code": code_sha256(loaded.module),
        "weights": loaded.weights_sha256,
        "task": loaded.task,
        "preprocess": repr(loaded.preprocess),
        "batch_size": fixed_batch(loaded, recipe),
        "suppression": None if recipe.suppression is None else asdict(recipe.suppression),
        **build_inputs(recipe, target),
    }

    def work() -> None:
        network, onnx = run.network, workspace.fp16_onnx
        write_rival(
            network.float_graph, network.card, onnx, recipe.suppression, target.backend, loaded.tail
        )
        trt, options = load_backend(target), build_options(recipe, target)
        build_engine(onnx, workspace.fp16_engine, trt, options, run.progress)

    run.stage("fp16", inputs, "fp16_onnx", "fp16_engine").run(work)


def write_rival(
    float_graph: fx.GraphModule,
    card: ModelCard,
    path: Path,
    suppression: Suppression | None = None,
    backend: Backend = "tensorrt",
    tail: Tail | None = None,
) -> None:
    """Write the float network in FP16, after the surgery and with the NMS that INT8 gets."""
    with tempfile.TemporaryDirectory() as folder:
        exported, cleaned = Path(folder, "exported.onnx"), Path(folder, "cleaned.onnx")
        export_float(float_graph, exported, card, card.batch_size, precision="fp16", tail=tail)
        clean(exported, path if suppression is None else cleaned)
        if suppression is not None:
            append_end2end(cleaned, path, suppression, backend)
