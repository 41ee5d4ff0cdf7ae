"""Export of a file that is quantized already: its own scales, codes and types, repaired."""

from __future__ import annotations

import logging

import onnx

from reptrt.engines.artifacts import replace_when_done
from reptrt.engines.surgery import clean
from reptrt.pipeline.model_card import write_card
from reptrt.pipeline.run import Run
from reptrt.pipeline.workspace.folder import discard

logger = logging.getLogger(__name__)


def keep_scales(run: Run) -> None:
    """Calibrate nothing, and drop what an earlier run of another model calibrated."""
    logger.warning(
        "%s: is quantized already: its scales stay; `requantize` starts from its float weights",
        run.plan.model,
    )
    files = run.workspace
    for path in (
        files.concats,
        files.placement,
        files.channels,
        files.sensitivity,
        files.calibration,
        files.scales,
    ):
        discard(path)


def export_as_is(run: Run) -> None:
    """Write the file as it is with the input `images`, and that file repaired.

    Raises:
        SurgeryError: the file holds what cannot be repaired.
    """
    workspace, card, file, steps = run.workspace, run.card, run.loaded.quantized, 2
    assert file is not None
    proto = onnx.load_model_from_string(file.model)
    if card.batch_size is not None:
        proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = card.batch_size
    write_card(card, proto)
    with replace_when_done(workspace.qdq_onnx) as temporary:
        onnx.save(proto, temporary)
    run.progress("export ONNX", 1, steps)
    clean(workspace.qdq_onnx, workspace.trt_onnx, run.plan.form)
    run.progress("export ONNX", 2, steps)
