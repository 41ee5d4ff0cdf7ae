"""Every rule finds the graph that breaks it, keeps quiet about the other, and is no folklore."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from reptrt.engines.inspection.fusion import fusion_report
from reptrt.engines.lint import RULES, Severity
from tests.engines.lint.cases import ATTENTIONS, ERRORS, EVERY, FP8, IN_FLOAT, Case
from tests.engines.lint.rtx import kernels_of, needs_rtx, refused_by_rtx


def name_of(case: Case) -> str:
    return case.rule


each = pytest.mark.parametrize("case", EVERY, ids=name_of)


@each
def test_a_rule_finds_what_breaks_it(case, lint):
    findings = lint(case.broken, case.broken_opset, **case.broken_constants)
    found = [finding for finding in findings if finding.rule == case.rule]
    assert len(found) == case.expected
    assert all(finding.node for finding in found) or found[0].rule in {
        "opset", "not-quantized", "fp32-remainder", "multiplier-form",
    }  # fmt: skip


@each
def test_a_rule_keeps_quiet_about_what_does_not(case, lint):
    findings = lint(case.sound, case.sound_opset, **case.sound_constants)
    assert case.rule not in {finding.rule for finding in findings}
    assert Severity.ERROR not in {finding.severity for finding in findings}


def test_every_rule_has_a_case():
    assert {rule.name for rule in RULES} == {case.rule for case in EVERY}


def test_every_rule_says_where_it_is_known_from():
    assert [rule.name for rule in RULES if not (inspect.getdoc(rule) or "").strip()] == []
    assert len({rule.name for rule in RULES}) == len(RULES)


@needs_rtx
@pytest.mark.parametrize("case", ERRORS, ids=name_of)
def test_tensorrt_rtx_refuses_what_is_called_an_error(case, save):
    assert refused_by_rtx(save(case.broken, case.broken_opset, **case.broken_constants))
    assert not refused_by_rtx(save(case.sound, case.sound_opset, **case.sound_constants))


@needs_rtx
@pytest.mark.parametrize("case", IN_FLOAT, ids=name_of)
def test_tensorrt_rtx_multiplies_in_float_what_is_called_slow(case, save):
    def runs_in_int8(text, constants):
        kernels = [k for k in kernels_of(save(text, **constants)) if k.multiplies_weights]
        return all(kernel.is_int8 for kernel in kernels)

    assert not runs_in_int8(case.broken, case.broken_constants)
    assert runs_in_int8(case.sound, case.sound_constants)


@needs_rtx
@pytest.mark.parametrize("case", ATTENTIONS, ids=name_of)
def test_tensorrt_rtx_does_not_fuse_the_attention_that_is_called_slow(case, save):
    def fused(text, constants):
        path = save(text, **constants)
        gpu = (8, 9) if constants.get("z") is FP8 else (8, 6)
        return fusion_report(kernels_of(path, gpu), path).fused_attention

    assert fused(case.broken, case.broken_constants) == 0
    assert fused(case.sound, case.sound_constants) == 1


def test_the_page_lists_every_rule():
    page = (Path(__file__).parents[3] / "docs" / "how-to" / "lint.md").read_text()
    rows = [
        f"| `{rule.name}` | {rule.severity.value} | {rule.reason} | "
        f"{'yes' if rule.repaired_by else ''} |"
        for rule in RULES
    ]
    assert [row for row in rows if row not in page] == []
