"""The builder's options from a recipe."""

from __future__ import annotations

from typing import Any

from reptrt.engines.build.builder import BuildOptions
from reptrt.engines.build.timing_cache import default_folder
from reptrt.engines.device import find_gpu
from reptrt.engines.target import Target
from reptrt.pipeline.recipe import Recipe, RecipeError


def build_options(recipe: Recipe, target: Target) -> BuildOptions:
    """Return how to build the engine of `recipe` for `target`.

    Raises:
        RecipeError: `opt_batch` exceeds `max_batch`, or the target has no such option.
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


def build_inputs(recipe: Recipe, target: Target) -> dict[str, Any]:
    """What the engine depends on besides the ONNX file; the timing cache is left out."""
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
