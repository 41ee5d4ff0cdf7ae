"""Ask TensorRT-RTX whether it parses and builds the file, and which kernels it makes of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import onnx

from reptrt.engines.build.builder import BuildError, build_engine
from reptrt.engines.build.parse import parse_error
from reptrt.engines.build.tensorrt_errors import find_remedy
from reptrt.engines.inspection.fusion import fusion_report, parse_kernels
from reptrt.engines.inspection.kernels import Kernel, Tensor
from reptrt.engines.lint.base import Finding, Severity
from reptrt.engines.partial import temporary_folder
from reptrt.engines.report_schema import FusionReport
from reptrt.engines.target import TARGETS, MissingComponentError, load_backend

_UNKNOWN = "repair what is found here; else report the message to NVIDIA"


@dataclass(frozen=True)
class RtxAnswer:
    """What TensorRT-RTX says.

    Attributes:
        version: Of TensorRT-RTX; empty where it is not installed.
        refused: Why it does not parse or build; empty where it does, or was not tried.
        skipped: Why it was not tried; empty where it was.
        fusion: Of the engine, None where there is none.
        kernels: [kind, inputs, weights, outputs, how many] with data types, most frequent first.
    """

    version: str = ""
    refused: str = ""
    skipped: str = ""
    fusion: FusionReport | None = None
    kernels: tuple[tuple[str, str, str, str, int], ...] = ()

    def findings(self) -> tuple[Finding, ...]:
        """Return TensorRT-RTX's refusal as a finding, where it refuses."""
        if not self.refused:
            return ()
        return (
            Finding(
                rule="tensorrt-rtx",
                severity=Severity.ERROR,
                node="",
                op="",
                reason=f"TensorRT-RTX {self.version} does not take the file",
                detail=self.refused,
                remedy=find_remedy(self.refused) or _UNKNOWN,
                fixable=False,
            ),
        )


def ask_rtx(path: Path) -> RtxAnswer:
    """Parse and build the file with TensorRT-RTX, where it is installed."""
    try:
        trt = load_backend(TARGETS["tensorrt-rtx"])
    except MissingComponentError as error:
        return RtxAnswer(skipped=f"not asked: {error}")
    version = str(trt.__version__)
    refused = parse_error(path, trt)
    if refused:
        return RtxAnswer(version, refused)
    if _has_open_sides(path):
        return RtxAnswer(
            version, skipped="parses; not built: dimensions other than the batch are open"
        )
    with temporary_folder() as folder:
        try:
            result = build_engine(path, Path(folder, "model.engine"), trt)
        except BuildError as error:
            return RtxAnswer(version, str(error).removeprefix(f"{path}: "))
    kernels = parse_kernels(result.layers)
    fusion = fusion_report(kernels, path, f"tensorrt_rtx {version}")
    return RtxAnswer(version, fusion=fusion, kernels=tuple(_grouped(kernels)))


def _has_open_sides(path: Path) -> bool:
    """Whether an input has an open dimension that is not its first."""
    graph = onnx.load(str(path), load_external_data=False).graph
    constants = {tensor.name for tensor in graph.initializer}
    return any(
        not side.HasField("dim_value")
        for value in graph.input
        if value.name not in constants
        for side in value.type.tensor_type.shape.dim[1:]
    )


def _grouped(kernels: tuple[Kernel, ...]) -> list[tuple[str, str, str, str, int]]:
    """Kernels that read and write the same types, as one row."""
    rows = Counter(
        (kernel.kind, _types(kernel.inputs), _types(kernel.weights), _types(kernel.outputs))
        for kernel in kernels
    )
    return [(*row, count) for row, count in rows.most_common()]


def _types(tensors: tuple[Tensor, ...]) -> str:
    return ", ".join(dict.fromkeys(tensor.dtype for tensor in tensors))
