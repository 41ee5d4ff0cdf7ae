"""Operators whose results are bounded by what they read, where nobody can tell their shapes."""

from __future__ import annotations

BOUNDED = frozenset(
    (
        *("Abs", "Add", "And", "Cast", "Ceil", "Concat", "Div", "Equal", "Exp", "Flatten", "Floor"),
        *("Gather", "GatherElements", "Greater", "Identity", "Less", "Log", "MatMul", "Max", "Min"),
        *("Mod", "Mul", "Neg", "Not", "Or", "Pow", "Reciprocal", "Relu", "Reshape", "Round"),
        *("Shape", "Sigmoid", "Sign", "Size", "Slice", "Split", "Sqrt", "Squeeze", "Sub", "Tanh"),
        *("Transpose", "Unsqueeze", "Where"),
    )
)
"""Results of no more elements than the product and the sum of all inputs."""
