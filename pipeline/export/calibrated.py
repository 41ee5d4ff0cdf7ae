"""Export of a calibrated network: quantized, and as TensorRT wants it."""

from __future__ import annotations

from reptrt.calibrators.state import load_calibration
from reptrt.engines.surgery import clean
from reptrt.pipeline.export.export import FileNotes, export_qdq
from reptrt.pipeline.run import Run


def export_calibrated(run: Run) -> None:
    """Write the Q/DQ model, and the Q/DQ model as TensorRT wants it.

    Raises:
        ExportError, SurgeryError: the network has no such form.
    """
    plan, workspace, network, steps = run.plan, run.workspace, run.make_network(), 2
    tail = run.loaded.tail
    load_calibration(network.quantized, workspace.calibration)
    export_qdq(
        network.quantized,
        workspace.qdq_onnx,
        network.card,
        network.card.batch_size,
        precision=plan.precision,
        tail=tail,
        notes=FileNotes(run.loaded.islands, run.facts),
    )
    run.progress("export ONNX", 1, steps)
    pays = plan.quantize == "pays"
    clean(workspace.qdq_onnx, workspace.trt_onnx, plan.form, float_depthwise=pays)
    run.progress("export ONNX", 2, steps)
