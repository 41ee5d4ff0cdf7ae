"""How much memory a cell asks for."""

from __future__ import annotations

from reptrt.pipeline.sweep.grid import Cell, Resources

_OVERHEAD_BYTES = 2 << 30
"""Of a run beside its cached activations: PyTorch, weights, ONNX Runtime."""


def memory_of(cell: Cell, resources: Resources) -> int:
    """Bytes: what is stated, else what the recipe may hold and what a run takes beside it."""
    return int(resources.memory or cell.recipe.max_memory + _OVERHEAD_BYTES)
