"""From the ONNX file to what is deployed: an engine, or for a CPU the file that ONNX Runtime fuses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from reptrt.calibrators.progress import Progress
from reptrt.engines.build.builder import BuildOptions, ShapeRange, build_engine
from reptrt.engines.build.timing_cache import default_folder
from reptrt.engines.device import find_gpu
from reptrt.engines.inspection.cpu_kernels import read_cpu_kernels
from reptrt.engines.inspection.fusion import fusion_report, parse_kernels
from reptrt.engines.report_schema import FusionReport
from reptrt.engines.surgery import rewrite_for_cpu
from reptrt.engines.target import Target, load_backend
from reptrt.models.inputs import NetworkInput
from reptrt.pipeline.recipe import Recipe, RecipeError


def build_options(
    recipe: Recipe, target: Target, inputs: Sequence[NetworkInput] = ()
) -> BuildOptions:
    """Return how to build the engine of `recipe` for `target`.

    Of `inputs`, those whose sides stay open get a profile of their smallest, usual and largest sizes.

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
    limit, batch = recipe.workspace_limit, (1, recipe.opt_batch, recipe.max_batch)
    return BuildOptions(
        compute_capabilities=target.compute_capabilities,
        batch=batch,
        shapes=open_shapes(inputs, recipe.batch_size, batch),
        workspace_bytes=None if limit is None else int(limit),
        optimization_level=recipe.optimization_level,
        timing_cache=recipe.timing_cache or default_folder(),
        version_compatible=recipe.version_compatible,
        hardware_compatible=recipe.hardware_compatible,
    )


def open_shapes(
    inputs: Sequence[NetworkInput], fixed: int | None, batch: tuple[int, int, int]
) -> dict[str, ShapeRange]:
    """Smallest, usual and largest shape of every input with open sides; `fixed` is the only batch."""
    low, usual, high = (fixed,) * 3 if fixed else batch
    return {
        one.name: (
            replace(one, sides=one.smallest or one.sides).shape(low),
            one.shape(usual),
            replace(one, sides=one.largest or one.sides).shape(high),
        )
        for one in inputs
        if one.open_sides
    }


def build_inputs(
    recipe: Recipe, target: Target, inputs: Sequence[NetworkInput] = ()
) -> dict[str, object]:
    """What the engine depends on beside the ONNX file; where timings are kept is not among it."""
    gpu = find_gpu() if target.backend == "tensorrt" else None
    options = build_options(recipe, target, inputs)
    return {
        "target": target.name,
        "compute_capabilities": options.compute_capabilities,
        "gpu": None if gpu is None else gpu.name,
        "batch": options.batch,
        "shapes": {name: list(map(list, one)) for name, one in options.shapes.items()},
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
