"""What TensorRT 10 and 11 refuse, run slowly or get wrong in an ONNX file, before any GPU.

`RULES` are looked up in the graph; `reptrt.engines.lint.rtx` asks TensorRT-RTX itself.
"""

from __future__ import annotations

from pathlib import Path

from onnx_graphsurgeon.logger import G_LOGGER

from reptrt.engines.foreign.border import reading
from reptrt.engines.lint.base import Finding, Rule, Severity
from reptrt.engines.lint.codes import CODE_RULES
from reptrt.engines.lint.layers import LAYER_RULES
from reptrt.engines.lint.placement import PLACEMENT_RULES
from reptrt.engines.lint.read_model import LintError, read_model
from reptrt.engines.lint.whole_file import FILE_RULES

__all__ = ["RULES", "Finding", "LintError", "Rule", "Severity", "lint_file"]

RULES: tuple[Rule, ...] = tuple(
    sorted(
        (*FILE_RULES, *CODE_RULES, *LAYER_RULES, *PLACEMENT_RULES),
        key=lambda rule: list(Severity).index(rule.severity),
    )
)


def lint_file(path: Path) -> tuple[Finding, ...]:
    """Return what breaks `RULES` in the ONNX file, worst first.

    Raises:
        LintError: It is missing, damaged or no valid ONNX.
    """
    with (
        G_LOGGER.suppress(G_LOGGER.ERROR),  # it prints to standard output, where JSON may go
        reading(path, LintError, "cannot be linted"),
    ):
        model = read_model(path)
        return tuple(finding for rule in RULES for finding in rule.check(model))
