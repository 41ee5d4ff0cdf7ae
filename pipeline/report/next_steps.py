"""Commands to go on with, from the files of a run."""

from __future__ import annotations

import shlex

from reptrt.engines.report_schema import Report
from reptrt.engines.target_table import TARGETS
from reptrt.models.names import PREFIXES
from reptrt.pipeline.recipe import flag


def next_steps(report: Report) -> list[tuple[str, str]]:
    """What to do next, and the command, typed in the folder of the run, which stands for MODEL where it can."""
    known = TARGETS.get(report.target)
    backend = "onnxruntime" if known is None else known.backend
    model, target = _model_of(report), flag("target")
    steps = []
    if backend == "tensorrt":
        steps += [
            ("Time the engine on its GPU", "trtexec --loadEngine=model.engine --useCudaGraph --noDataTransfers"),
            ("Build it again on another machine", "trtexec --onnx=model.trt.onnx --saveEngine=model.engine --stronglyTyped"),
        ]  # fmt: skip
    if backend == "tensorrt_rtx":
        steps += [("Time it on an RTX GPU", "reptrt bench model.engine")]
    if backend != "onnxruntime":
        steps += [
            ("Compare the engine's outputs with ONNX Runtime's",
             "polygraphy run model.trt.onnx --trt --onnxrt --strongly-typed"),
            ("Build it on a Jetson", f"reptrt kit {model} {target} jetson-orin-nx"),
        ]  # fmt: skip
    return [
        *steps,
        ("Serve it by Triton", f"reptrt triton {model} {target} {report.target} --output models"),
        ("Look at the graph", "netron model.trt.onnx"),
        ("See what it would cost elsewhere", f"reptrt cost model.trt.onnx {target} server-t4"),
    ]  # fmt: skip


def _model_of(report: Report) -> str:
    """The folder, which brings its options; not of a network in memory, nor of one that Python finds elsewhere only."""
    is_own = ":" in report.model and not report.model.startswith(PREFIXES)
    has_recipe = (report.command or "").startswith("reptrt ")
    return "." if has_recipe and not is_own else shlex.quote(report.model)
