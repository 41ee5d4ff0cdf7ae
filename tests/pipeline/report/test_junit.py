"""A gate as other programs read it."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from reptrt.engines.report_schema import NOT_JUDGED, Check, Verdict
from reptrt.pipeline.report.junit import gate_cases, write_junit
from tests.reports import make_report

CHECKS = (
    Check("drop", passed=True, reason="0.1 of 0.5 points"),
    Check("agreement", passed=False, reason="90 of 95 %"),
    Check("accuracy", passed=None, reason="too few images"),
)


def tags(verdict: Verdict, path: Path) -> list[tuple[str | None, list[str]]]:
    write_junit("reptrt", list(gate_cases(make_report(verdict=verdict))), path)
    suite = ElementTree.parse(path).getroot()
    failed = [one for one in suite if one.find("failure") is not None]
    assert suite.get("failures") == str(len(failed))
    return [(case.get("name"), [one.tag for one in case]) for case in suite]


def test_what_was_missed_or_could_not_be_judged_fails(tmp_path: Path) -> None:
    verdict = Verdict("failed", "agreement", CHECKS)
    assert tags(verdict, tmp_path / "junit.xml") == [
        ("drop", []), ("agreement", ["failure"]), ("accuracy", ["failure"]),
    ]  # fmt: skip
    assert 'message="90 of 95 %"' in (tmp_path / "junit.xml").read_text()


def test_a_failure_that_was_forced_or_that_nobody_asked_about_is_none(tmp_path: Path) -> None:
    for verdict in (Verdict("failed", "", CHECKS, forced=True), Verdict(checks=CHECKS)):
        assert tags(verdict, tmp_path / "junit.xml") == [
            ("drop", []), ("agreement", ["skipped"]), ("accuracy", ["skipped"]),
        ]  # fmt: skip


def test_without_a_gate_there_is_one_case_that_was_not_judged(tmp_path: Path) -> None:
    assert tags(NOT_JUDGED, tmp_path / "junit.xml") == [("gate", ["skipped"])]
