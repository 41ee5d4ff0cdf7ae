"""What `reptrt regress` found: rows for the terminal, and a page of Markdown for the CI job."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Group
from rich.table import Table
from rich.text import Text

from reptrt.engines.artifacts import replace_when_done, write_json
from reptrt.pipeline.regression.regress import BaselineCheck
from reptrt.pipeline.report.junit import Case, Tag, write_junit
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
    write_junit("reptrt regress", list(junit_cases(findings)), folder / "junit.xml")
    summary = folder / "summary.md"
    with replace_when_done(summary) as file:
        file.write_text(markdown(findings), encoding="utf-8")
    job = os.environ.get("GITHUB_STEP_SUMMARY")
    if job:
        with Path(job).open("a", encoding="utf-8") as page:
            page.write(markdown(findings))
    return summary


def junit_cases(findings: Sequence[BaselineCheck]) -> Iterator[Case]:
    """The findings as cases of JUnit: an entry is their subject."""
    tags: dict[str, Tag | None] = {"ok": None, "skipped": "skipped", "error": "error"}
    for finding in findings:
        tag = tags.get(finding.outcome, "failure")
        name = finding.metric or "all"
        yield Case(finding.entry, name, tag, finding.message, finding.outcome)


def job_annotations(findings: Sequence[BaselineCheck]) -> list[str]:
    """What a job of GitHub shows beside its steps: a line for each finding that fails."""
    return [
        f"::error title=reptrt regress::{_escape(line)}"
        for finding in findings
        if finding.outcome not in ("ok", "skipped")
        for line in explanations([finding])
    ]


def _escape(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


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
