"""The build targets as people and programs read them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from reptrt.engines.target import TARGETS, Target

HEADER = ("target", "built by", "compute", "memory", "TensorRT", "FP8", "DLA")


def target_rows() -> list[tuple[str, ...]]:
    """One row for each target, under `HEADER`."""
    return [
        (
            target.name,
            target.backend,
            _capabilities(target),
            _memory(target),
            _versions(target),
            "yes" if target.fp8 else "",
            str(target.dla or ""),
        )
        for target in TARGETS.values()
    ]


def target_facts(target: Target) -> list[tuple[str, str]]:
    """Everything about one target; facts that it does not have are left out."""
    facts = [
        ("target", target.name),
        ("device", target.description),
        ("built by", target.backend),
        ("compute capability", _capabilities(target)),
        ("memory", _memory(target)),
        ("TensorRT", _versions(target)),
        ("INT8 convolutions", "yes" if target.int8 else "no"),
        ("FP8", "yes" if target.fp8 else "no"),
        ("DLA", f"{target.dla}, not used" if target.dla else "none"),
        ("note", target.note),
    ]
    return [(name, value) for name, value in facts if value]


def target_json(chosen: Target | None = None) -> list[dict[str, Any]]:
    """All fields of all targets, or of the chosen one alone."""
    return [asdict(target) for target in ([chosen] if chosen else TARGETS.values())]


def _capabilities(target: Target) -> str:
    return _span([f"{major}.{minor}" for major, minor in target.compute_capabilities])


def _memory(target: Target) -> str:
    return f"{_span([str(size) for size in target.memory_gb])} GB" if target.memory_gb else ""


def _span(values: list[str]) -> str:
    return ", ".join(values) if len(values) <= 2 else f"{values[0]} to {values[-1]}"


def _versions(target: Target) -> str:
    if target.tensorrt is None:
        return ""
    first, last = target.tensorrt
    return f"{first} to {last}" if last else f"{first} on"
