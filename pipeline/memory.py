"""How much memory a run takes."""

from __future__ import annotations

from reptrt.pipeline.recipe import Recipe

_OVERHEAD_BYTES = 2 << 30
"""Beside the cached activations: PyTorch, weights, ONNX Runtime."""


def memory_bound(recipe: Recipe) -> int:
    """Bytes that a run of `recipe` takes, roughly and at most."""
    return int(recipe.max_memory) + _OVERHEAD_BYTES
