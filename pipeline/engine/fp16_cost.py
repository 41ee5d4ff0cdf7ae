"""INT8 against FP16 before there is a GPU: both engines' layers, compiled or predicted, and their cost."""

from __future__ import annotations

import shutil
from pathlib import Path

from torch import fx

from reptrt.engines.cost.comparison import compare_layers
from reptrt.engines.cost.records import Comparison
from reptrt.engines.cost.sources import read_model
from reptrt.engines.outputs.suppression import Suppression
from reptrt.engines.partial import temporary_folder
from reptrt.engines.target import Target
from reptrt.models.card import ModelCard
from reptrt.pipeline.engine.fp16_engine import write_fp16_onnx
from reptrt.pipeline.export.fix_sides import fix_sides


def compare_with_fp16(
    int8_onnx: Path,
    float_graph: fx.GraphModule,
    card: ModelCard,
    target: Target,
    batch: int = 1,
    suppression: Suppression | None = None,
) -> Comparison | None:
    """Cost the engine of `int8_onnx` and that of the float network in FP16; no GPU is needed.

    TensorRT-RTX compiles both for a target of its own, for one architecture and batch 1; for other GPUs
    the fusion rules predict both. Returns None for a target that names no GPU.

    Args:
        int8_onnx: the Q/DQ model that the engine is built from.
        float_graph: the same network without quantizers.
        card: of both; its batch is the one of the files.
        target: where the engine will run.
        batch: for which both are costed, where the files leave it open.
        suppression: NMS that the engine of `int8_onnx` has in it, None where it has none.

    Raises:
        BuildError, UnpredictableModelError, CostError: one of them gives no kernels with shapes.
        MissingComponentError: TensorRT-RTX is asked for and not here.
    """
    sheet = target.data_sheet
    if sheet is None:
        return None
    with temporary_folder() as folder:
        fp16_onnx, sized = Path(folder, "fp16.onnx"), Path(folder, int8_onnx.name)
        write_fp16_onnx(float_graph, card, fp16_onnx, suppression, target.backend)
        shutil.copyfile(int8_onnx, sized)
        for path in (sized, fp16_onnx):
            fix_sides(path, card)
        int8, fp16 = (read_model(path, target, sheet) for path in (sized, fp16_onnx))
    chosen = int8.batch if card.batch_size else batch
    return compare_layers(int8.at_batch(chosen), fp16, sheet)
