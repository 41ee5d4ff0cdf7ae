"""Findings as JSON, and as a few lines for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from reptrt.engines.foreign.text import visible
from reptrt.engines.lint.base import Finding, Severity
from reptrt.engines.lint.rtx import RtxAnswer

_NODES_SHOWN = 3
_INDENT = " " * 10


def lint_json(
    path: Path, findings: Sequence[Finding], answer: RtxAnswer, gone: Mapping[str, int] | None
) -> dict[str, Any]:
    """Return the findings as JSON; `gone` are the repaired ones per rule, None where none were asked for."""
    return {
        "file": str(path),
        "counts": _counts(findings),
        "findings": [{**asdict(f), "severity": f.severity.value} for f in findings],
        "repaired": gone,
        "tensorrt_rtx": asdict(answer),
    }


def lint_lines(
    path: Path, findings: Sequence[Finding], answer: RtxAnswer, gone: Mapping[str, int] | None
) -> list[str]:
    """Return the findings, worst first and equal ones together, and TensorRT-RTX's kernels."""
    lines: list[str] = []
    if gone is not None:
        listed = ", ".join(f"{count} {rule}" for rule, count in gone.items()) or "nothing"
        lines += [f"repaired: {listed}", ""]
    counts = ", ".join(f"{count} {name}" for name, count in _counts(findings).items() if count)
    lines += [f"{path}: {counts or 'nothing found'}", ""]
    for group in _groups(findings):
        lines += _group_lines(group)
    return [visible(line) for line in [*lines, *_rtx_lines(answer)]]


def _counts(findings: Sequence[Finding]) -> dict[str, int]:
    return {
        severity.value: sum(finding.severity is severity for finding in findings)
        for severity in Severity
    }


def _groups(findings: Sequence[Finding]) -> list[list[Finding]]:
    """Findings of one rule and one repair together, in the order of `findings`."""
    groups: dict[tuple[str, bool], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.rule, finding.fixable), []).append(finding)
    return sorted(groups.values(), key=lambda g: list(Severity).index(g[0].severity))


def _group_lines(group: Sequence[Finding]) -> list[str]:
    first = group[0]
    nodes = [f"{f.node} ({f.detail})" if f.detail else f.node for f in group if f.node]
    title = f"{first.severity.value:<10}{first.rule}"
    if nodes:
        shown = ", ".join(nodes[:_NODES_SHOWN])
        more = f", and {len(nodes) - _NODES_SHOWN} more" if len(nodes) > _NODES_SHOWN else ""
        title += f" · {len(nodes)} node{'s' * (len(nodes) > 1)}: {shown}{more}"
    whole_file = f": {first.detail}" if first.detail and not first.node else ""
    remedy = f"`fix` repairs it; or {first.remedy}" if first.fixable else first.remedy
    return [title, f"{_INDENT}{first.reason}{whole_file}", f"{_INDENT}→ {remedy}", ""]


def _rtx_lines(answer: RtxAnswer) -> list[str]:
    if answer.skipped:
        return [f"TensorRT-RTX {answer.version}".rstrip() + f" {answer.skipped}"]
    fusion = answer.fusion
    if fusion is None:
        return []
    fused, attentions = fusion.fused_attention, fusion.attention_blocks
    lines = [
        f"TensorRT-RTX {answer.version} parses and builds it: {fusion.int8_layers} of "
        f"{fusion.quantizable_layers} layers in INT8, {fusion.kernels} kernels"
        + (f", {fused} of {attentions} attentions fused" if attentions else ""),
        "",
        *_table([("kernels", "kind", "reads", "weights", "writes"), *_rows(answer)]),
    ]
    reasons: dict[str, list[str]] = {}
    for island in fusion.float_islands:
        reasons.setdefault(island.reason, []).append(island.layer)
    for reason, layers in reasons.items():
        more = f", and {len(layers) - _NODES_SHOWN} more" if len(layers) > _NODES_SHOWN else ""
        lines += ["", f"float: {', '.join(layers[:_NODES_SHOWN])}{more}", f"{_INDENT}{reason}"]
    return lines


def _rows(answer: RtxAnswer) -> list[tuple[str, ...]]:
    return [(str(count), *texts) for *texts, count in answer.kernels]


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
