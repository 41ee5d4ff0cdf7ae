"""What `reptrt regress` found: rows for the terminal, and a page of Markdown for the CI job."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from xml.etree import ElementTree

from rich.console import Group
from rich.table import Table
from rich.text import Text

from reptrt.engines.artifacts import replace_when_done, write_json
from reptrt.engines.foreign.text import visible
from reptrt.pipeline.regression.regress import BaselineCheck
from reptrt.pipeline.report.number_format import MISSING

RESULTS = "results.json"
HEADER = ("outcome", "entry", "metric", "measured", "baseline")


def regression_table(findings: Sequence[BaselineCheck]) -> Group:
    """Return a rich renderable: one row for each comparison, then the messages and the conclusion."""
    table = Table(*HEADER, box=None, pad_edge=False)
    for row in finding_rows(findings):
        table.add_row(*map(Text, row))
    lines = [*explanations(findings), conclusion(findings)]
    return Group(table, *[Text(line, overflow="fold") for line in lines])


def markdown(findings: Sequence[BaselineCheck]) -> str:
    """The table and the messages as a page."""
    rows = [HEADER, ("---",) * len(HEADER), *finding_rows(findings)]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    listed = "\n".join(f"- {message}" for message in explanations(findings))
    return f"### reptrt regress: {conclusion(findings)}\n\n{table}\n\n{listed}\n"


def write_summary(findings: Sequence[BaselineCheck], folder: Path) -> Path:
    """Write results.json, junit.xml and the page summary.md, whose path is returned.

    In a GitHub job, the page is appended to the job's summary too.

    Raises:
        WriteError: `folder` cannot be written.
    """
    write_json([_as_json(finding) for finding in findings], folder / RESULTS)
    with replace_when_done(folder / "junit.xml") as file:
        file.write_bytes(junit(findings))
    summary = folder / "summary.md"
    with replace_when_done(summary) as file:
        file.write_text(markdown(findings), encoding="utf-8")
    job = os.environ.get("GITHUB_STEP_SUMMARY")
    if job:
        with Path(job).open("a", encoding="utf-8") as page:
            page.write(markdown(findings))
    return summary


def junit(findings: Sequence[BaselineCheck]) -> bytes:
    """The findings as JUnit's XML, which every CI shows: an entry is a class, a metric a case."""
    suite = ElementTree.Element("testsuite", name="reptrt regress", tests=str(len(findings)))
    for finding in findings:
        case = ElementTree.SubElement(
            suite, "testcase", classname=finding.entry, name=finding.metric or "all"
        )
        tag = {"ok": None, "skipped": "skipped", "error": "error"}.get(finding.outcome, "failure")
        if tag is not None:
            ElementTree.SubElement(
                case, tag, message=visible(finding.message), type=finding.outcome
            )
    for tag, name in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
        suite.set(name, str(len(suite.findall(f"testcase/{tag}"))))
    written: bytes = ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True)
    return written


def finding_rows(findings: Sequence[BaselineCheck]) -> list[tuple[str, ...]]:
    """One row under `HEADER` for each finding."""
    return [
        (
            finding.outcome,
            finding.entry,
            finding.metric or "all",
            MISSING if finding.measured is None else f"{finding.measured:g}",
            MISSING
            if finding.expected is None
            else f"{finding.expected.value:g} ± {finding.expected.tolerance:g}",
        )
        for finding in findings
    ]


def explanations(findings: Sequence[BaselineCheck]) -> list[str]:
    """What is wrong and what to do, and why something was skipped: one line each."""
    return [
        f"{finding.outcome}: {finding.entry}: {finding.message}"
        for finding in findings
        if finding.message
    ]


def conclusion(findings: Sequence[BaselineCheck]) -> str:
    """Say in one line how all ended, and loudly where nothing was compared."""
    counts = Counter(finding.outcome for finding in findings)
    if set(counts) <= {"skipped"}:
        return "Nothing was checked: every entry was skipped"
    return ", ".join(f"{count} {outcome}" for outcome, count in counts.items())


def _as_json(finding: BaselineCheck) -> dict[str, object]:
    expected = finding.expected
    return {**asdict(finding), "expected": None if expected is None else expected.model_dump()}
