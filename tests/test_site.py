"""The documentation builds as a site without a warning, and README stands alone."""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import reptrt
from benchmarks import accuracy_chart
from reptrt.pipeline.recipe import Recipe

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
FILES = re.compile(
    r"https://(?:github\.com/reptrt/reptrt/blob|raw\.githubusercontent\.com/reptrt/reptrt)/main/([^)\"#]+)"
)


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path],
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (built.returncode, built.stderr) == (0, "")
    page = (tmp_path / "reference" / "cli" / "index.html").read_text()
    assert "--max-drop" in page
    assert page.count("Boxes from the engine:") > 5
    assert "max_drop" in (tmp_path / "reference" / "python" / "index.html").read_text()
    # Paragraphs in lists are indented by four columns here, where GitHub is content with three.
    broken = re.compile(r"\s\d\. <strong>")
    pages = {path.parent.name: path.read_text() for path in tmp_path.rglob("index.html")}
    assert [name for name, text in pages.items() if broken.search(text)] == []


def test_every_page_stands_in_the_navigation() -> None:
    listed = re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    pages = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")]
    assert sorted(listed) == sorted(pages)


def test_readme_is_short_and_its_links_are_absolute_and_resolve() -> None:
    assert len(README.splitlines()) <= 125
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert all(link.startswith("https://") for link in links)
    assert len(FILES.findall(README)) > 10
    assert [path for path in FILES.findall(README) if not (ROOT / path).exists()] == []


def test_python_in_readme_calls_what_there_is() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    calls = [
        node
        for block in blocks
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("reptrt.")
    ]
    assert len(calls) == 3
    for call in calls:
        known = inspect.signature(getattr(reptrt, ast.unparse(call.func).partition(".")[2]))
        named = {one.arg for one in call.keywords}
        assert named <= {*known.parameters, *Recipe.model_fields}, ast.unparse(call)


def test_the_chart_is_that_of_its_data_and_its_data_stand_in_the_results() -> None:
    facts = json.loads((ROOT / "docs" / "results" / "headline.json").read_text())
    for name, colors in (
        ("accuracy", accuracy_chart.LIGHT),
        ("accuracy-dark", accuracy_chart.DARK),
    ):
        assert (ROOT / "docs" / f"{name}.svg").read_text() == accuracy_chart.draw(facts, colors)
    results = (ROOT / "docs" / "results.md").read_text()
    for network in facts["networks"]:
        row = [network[key] for key in ("fp32", "minmax", "other", "reptrt") if network[key]]
        assert [value for value in row if f"{value:.2f}" not in results] == []
        sections = re.findall(r"^#+ (.+)$", results, re.MULTILINE)
        assert any(section in network["source"] for section in sections)
