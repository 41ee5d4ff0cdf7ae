"""Build the FP16 engine of the same network, which the INT8 engine is compared with."""

from __future__ import annotations

import functools
from dataclasses import asdict
from pathlib import Path

from torch import fx

from reptrt.engines.artifacts import replace_when_done
from reptrt.engines.build.builder import build_engine
from reptrt.engines.outputs.suppression import Suppression
from reptrt.engines.partial import temporary_folder
from reptrt.engines.surgery import clean
from reptrt.engines.target import Backend, load_backend
from reptrt.models.card import ModelCard
from reptrt.models.onnx_import.tail import Tail
from reptrt.pipeline.engine.build import build_inputs, build_options
from reptrt.pipeline.export.append_nms import write_with_nms
from reptrt.pipeline.export.export import export_float
from reptrt.pipeline.run import Run
from reptrt.pipeline.validation.validate import runs_on_gpu
from reptrt.pipeline.workspace.folder import discard


def make_fp16_engine(run: Run) -> None:
    """Write the network in FP16, and where this machine can run it also its engine, built as INT8's is.

    Raises:
        BuildError: TensorRT does not build it.
    """
    recipe, workspace, target = run.recipe, run.workspace, run.target
    if not runs_on_gpu(target):
        discard(workspace.fp16_onnx)
        discard(workspace.fp16_engine)
        return
    inputs = {
        "network": run.network_sha256,
        "batch_size": run.plan.batch_size,
        "cut": run.is_cut,
        "suppression": None if recipe.suppression is None else asdict(recipe.suppression),
        **build_inputs(recipe, target, run.loaded.inputs),
    }

    def work() -> None:
        onnx = workspace.fp16_onnx
        write_fp16_onnx(
            run.recording.float_graph,
            run.card,
            onnx,
            recipe.suppression,
            target.backend,
            None if run.is_cut else run.loaded.tail,
        )
        trt, options = load_backend(target), build_options(recipe, target, run.loaded.inputs)
        build_engine(onnx, workspace.fp16_engine, trt, options, run.progress)

    run.stage("fp16", inputs, "fp16_onnx", "fp16_engine").run(work)


def write_fp16_onnx(
    float_graph: fx.GraphModule,
    card: ModelCard,
    path: Path,
    suppression: Suppression | None = None,
    backend: Backend = "tensorrt",
    tail: Tail | None = None,
) -> None:
    """Write the network in FP16, with the same surgery and NMS as the INT8 model."""
    with temporary_folder() as folder:
        cleaned = path if suppression is None else Path(folder, "cleaned.onnx")
        with replace_when_done(cleaned) as temporary:
            temporary.write_bytes(_fp16_model(float_graph, card, tail))
        if suppression is not None:
            write_with_nms(cleaned, path, suppression, backend)


@functools.lru_cache(maxsize=1)
def _fp16_model(float_graph: fx.GraphModule, card: ModelCard, tail: Tail | None) -> bytes:
    """The file's content: placement, cost and validation of a run want the same one."""
    with temporary_folder() as folder:
        exported, cleaned = Path(folder, "exported.onnx"), Path(folder, "cleaned.onnx")
        export_float(float_graph, exported, card, card.batch_size, precision="fp16", tail=tail)
        clean(exported, cleaned)
        return cleaned.read_bytes()
