"""What a stage needs of the stages before it, said in one line where it is not there."""

from __future__ import annotations

import onnx

from reptrt.engines.foreign.border import reading
from reptrt.pipeline.export.append_nms import require_detector
from reptrt.pipeline.run import Run
from reptrt.pipeline.workspace.folder import WorkspaceError, require, require_same


def require_exported(run: Run) -> None:
    """Refuse to go on from files of another calibration or precision.

    Raises:
        WorkspaceError: they are missing, or do not belong together.
    """
    files = run.workspace
    require(files.fp32_onnx, "fp32")
    for path in (files.qdq_onnx, files.trt_onnx):
        require(path, "export")
    for path in (files.fp32_onnx, files.qdq_onnx, files.trt_onnx):
        with reading(path, WorkspaceError, "is no ONNX model; remove it, and export again"):
            onnx.load(path, load_external_data=False)
    if run.recipe.end2end:
        require(files.end2end_onnx, "end2end")
    require_same(files.folder, "fp32", {"network": run.network_sha256})
    require_same(files.folder, "export", run.exported_from)


def require_boxes(run: Run) -> None:
    """Refuse an end-to-end engine of a network without boxes.

    Raises:
        AppendNmsError: the recipe asks for it.
    """
    if run.recipe.end2end:
        require_detector(run.recipe.model, run.loaded.task == "detection")
