"""The file that is deployed: an engine, or for a CPU the ONNX file that ONNX Runtime fuses."""

from __future__ import annotations

from pathlib import Path

from reptrt.calibrators.base import Progress
from reptrt.engines.build.builder import BuildOptions, build_engine
from reptrt.engines.inspection.cpu_kernels import read_cpu_kernels
from reptrt.engines.inspection.fusion import fusion_report, parse_kernels
from reptrt.engines.report_schema import FusionReport
from reptrt.engines.surgery import rewrite_for_cpu
from reptrt.engines.target import Target, load_backend


def write_engine(
    onnx: Path,
    engine: Path,
    target: Target,
    options: BuildOptions,
    progress: Progress | None = None,
) -> FusionReport:
    """Make `engine` of `onnx` and return the content of fusion.json.

    Args:
        onnx: the Q/DQ graph as TensorRT wants it.
        engine: file to write, atomically.
        target: where it will run.
        options: of an engine; a CPU has none.
        progress: called as the builder advances.

    Raises:
        BuildError, SurgeryError, ModelFileError: `onnx` is refused.
        MissingComponentError: nothing here builds for `target`.
    """
    backend = load_backend(target)
    if target.backend == "onnxruntime":
        rewrite_for_cpu(onnx, engine)
        kernels, version = read_cpu_kernels(engine), backend.__version__
    else:
        built = build_engine(onnx, engine, backend, options, progress)
        kernels, version = parse_kernels(built.layers), built.version
    return fusion_report(kernels, onnx, f"{target.backend} {version}")
