"""From the ONNX file to what is deployed: an engine, or for a CPU the file that ONNX Runtime fuses."""

from __future__ import annotations

from pathlib import Path

from reptrt.calibrators.base import Progress
from reptrt.engines.build.builder import BuildOptions, build_engine
from reptrt.engines.build.timing_cache import default_folder
from reptrt.engines.device import find_gpu
from reptrt.engines.inspection.cpu_kernels import read_cpu_kernels
from reptrt.engines.inspection.fusion import fusion_report, parse_kernels
from reptrt.engines.report_schema import FusionReport
from reptrt.engines.surgery import rewrite_for_cpu
from reptrt.engines.target import Target, load_backend
from reptrt.pipeline.recipe import Recipe, RecipeError


def build_options(recipe: Recipe, target: Target) -> BuildOptions:
    """Return how to build the engine of `recipe` for `target`.

    Raises:
        RecipeError: the usual batch is larger than the largest, or the target knows no such engine.
    """
    if recipe.opt_batch > recipe.max_batch:
        raise RecipeError(
            f"opt_batch {recipe.opt_batch} is larger than max_batch {recipe.max_batch}"
        )
    if target.backend != "tensorrt" and (recipe.version_compatible or recipe.hardware_compatible):
        raise RecipeError(
            f"target '{target.name}': `version_compatible` and `hardware_compatible` are options of"
            ' classic TensorRT; leave them out, or build with `target="tensorrt"`'
        )
    limit = recipe.workspace_limit
    return BuildOptions(
        compute_capabilities=target.compute_capabilities,
        batch=(1, recipe.opt_batch, recipe.max_batch),
        workspace_bytes=None if limit is None else int(limit),
        optimization_level=recipe.optimization_level,
        timing_cache=recipe.timing_cache or default_folder(),
        version_compatible=recipe.version_compatible,
        hardware_compatible=recipe.hardware_compatible,
    )


def build_inputs(recipe: Recipe, target: Target) -> dict[str, object]:
    """What the engine depends on beside the ONNX file; where timings are kept is not among it."""
    gpu = find_gpu() if target.backend == "tensorrt" else None
    options = build_options(recipe, target)
    return {
        "target": target.name,
        "compute_capabilities": options.compute_capabilities,
        "gpu": None if gpu is None else gpu.name,
        "batch": options.batch,
        "workspace_bytes": options.workspace_bytes,
        "optimization_level": options.optimization_level,
        "version_compatible": options.version_compatible,
        "hardware_compatible": options.hardware_compatible,
    }


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
