"""What a stage needs of the stages before it, said in one line where it is not there."""

from __future__ import annotations

from reptrt.engines.artifacts import file_sha256
from reptrt.pipeline.export.append_nms import require_detector
from reptrt.pipeline.run import Run
from reptrt.pipeline.workspace.folder import require, require_same


def require_exported(run: Run) -> None:
    """Refuse to go on from files of another calibration or precision.

    Raises:
        WorkspaceError: they are missing, or do not belong together.
    """
    workspace, plan = run.workspace, run.plan
    for path in (workspace.fp32_onnx, workspace.trt_onnx):
        require(path, "export")
    if run.recipe.end2end:
        require(workspace.end2end_onnx, "end2end")
    calibration = file_sha256(require(workspace.calibration, "calibrate"))
    same = {"calibration": calibration, "precision": plan.precision}
    require_same(workspace.folder, "export", {**same, "network": run.network_sha256})


def require_boxes(run: Run) -> None:
    """Refuse an end-to-end engine of a network without boxes.

    Raises:
        AppendNmsError: the recipe asks for it.
    """
    if run.recipe.end2end:
        require_detector(run.recipe.model, run.loaded.task == "detection")
