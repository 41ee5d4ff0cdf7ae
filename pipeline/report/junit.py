"""JUnit's XML, which every CI shows: of a run's gate, and of entries that are held against baselines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple
from xml.etree import ElementTree

from reptrt.engines.artifacts import replace_when_done
from reptrt.engines.foreign.text import visible
from reptrt.engines.report_schema import Report

Tag = Literal["failure", "error", "skipped"]
_COUNTS: dict[Tag, str] = {"failure": "failures", "error": "errors", "skipped": "skipped"}


class Case(NamedTuple):
    """One thing that was checked; `tag` is None where it passed, `kind` names what happened otherwise."""

    subject: str
    name: str
    tag: Tag | None
    message: str = ""
    kind: str = ""


def write_junit(suite: str, cases: Sequence[Case], path: Path) -> None:
    """Write one suite of `cases` to `path`.

    Raises:
        WriteError: it cannot be written.
    """
    root = ElementTree.Element("testsuite", name=suite, tests=str(len(cases)))
    for case in cases:
        element = ElementTree.SubElement(
            root, "testcase", classname=visible(case.subject), name=visible(case.name)
        )
        if case.tag is not None:
            ElementTree.SubElement(
                element, case.tag, message=visible(case.message), type=case.kind or case.tag
            )
    for tag, name in _COUNTS.items():
        root.set(name, str(len(root.findall(f"testcase/{tag}"))))
    with replace_when_done(path) as file:
        file.write_bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))


def gate_cases(report: Report) -> Iterator[Case]:
    """Each check of the verdict; where no gate was asked for, or it was forced, none of them fails."""
    verdict = report.verdict
    if not verdict.checks:
        yield Case(report.model, "gate", "skipped", verdict.reason)
    for check in verdict.checks:
        tag: Tag = "failure" if verdict.stops else "skipped"
        yield Case(report.model, check.name, None if check.passed else tag, check.reason)
