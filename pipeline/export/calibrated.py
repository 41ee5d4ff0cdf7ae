"""Export of a calibrated network: float, quantized, and as TensorRT wants it."""

from __future__ import annotations

from reptrt.calibrators.state import load_calibration
from reptrt.engines.surgery import clean
from reptrt.pipeline.export.export import FileNotes, export_float, export_qdq
from reptrt.pipeline.run import Run


def export_calibrated(run: Run) -> None:
    """Write the float reference, the Q/DQ model, and the Q/DQ model as TensorRT wants it.

    Raises:
        ExportError, SurgeryError: the network has no such form.
    """
    plan, workspace, network, steps = run.plan, run.workspace, run.make_network(), 3
    tail = run.loaded.tail
    load_calibration(network.quantized, workspace.calibration)
    batch_size = network.card.batch_size
    export_float(network.float_graph, workspace.fp32_onnx, network.card, batch_size, tail=tail)
    run.progress("export ONNX", 1, steps)
    export_qdq(
        network.quantized,
        workspace.qdq_onnx,
        network.card,
        batch_size,
        precision=plan.precision,
        tail=tail,
        notes=FileNotes(run.loaded.islands, run.facts),
    )
    run.progress("export ONNX", 2, steps)
    pays = plan.quantize == "pays"
    clean(workspace.qdq_onnx, workspace.trt_onnx, plan.form, float_depthwise=pays)
    run.progress("export ONNX", 3, steps)
