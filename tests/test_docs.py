"""What the documents say exists: links, make targets, commands, files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from reptrt.pipeline.cli.main import cli

ROOT = Path(__file__).parents[1]
PACKAGES = ("models", "calibrators", "engines", "pipeline", "benchmarks")
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
SCRIPTS = [
    ROOT / ".ci" / "run",
    *sorted((ROOT / ".github" / "workflows").glob("*.yml")),
    *sorted((ROOT / "docker").glob("*.Dockerfile")),
]
MAKEFILE = (ROOT / "Makefile").read_text()
CODE = re.compile(r"```(?:bash|sh)[^\n]*\n(.*?)```|(?<!`)`([^`\n]+)`(?!`)", re.DOTALL)

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def commands(path: Path, program: str) -> Iterator[list[str]]:
    """Words after `program`, of each command in a page's code or in a script's lines."""
    text = path.read_text()
    if path.suffix == ".md":
        text = "\n".join("".join(parts) for parts in CODE.findall(text))
    for line in text.replace("\\\n", " ").splitlines():
        for command in re.split(r"&&|[|;>]| #", line):
            found = re.search(rf"(?:^|[\s:/]){program}((?: .*)?)$", command.rstrip())
            if found:
                yield found[1].split()


def make_words() -> list[tuple[str, str]]:
    return [
        (path.name, word)
        for path in (*PAGES, *SCRIPTS)
        for words in commands(path, "make")
        for word in words
        if re.match(r"[a-z]+[a-z-]*$|[A-Z_]+=", word)
    ]


def targets() -> list[str]:
    return re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE)


@each_page
def test_relative_links_resolve(page: Path):
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    relative = [link for link in links if "://" not in link]
    assert [link for link in relative if not (page.parent / link).exists()] == []


def test_make_targets_and_variables_that_are_named_exist():
    variables = re.findall(r"^([A-Z_]+) *\??=", MAKEFILE, re.MULTILINE)
    known = {*targets(), *(f"{name}=" for name in variables)}
    words = make_words()
    assert len(words) > 10
    assert [
        (page, word)
        for page, word in words
        if (f"{word.split('=')[0]}=" if "=" in word else word) not in known
    ] == []


def test_every_make_target_says_what_it_does_and_is_phony():
    phony = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    assert phony is not None
    assert sorted(phony[1].split()) == sorted(targets())
    assert sorted(re.findall(r"^([a-z-]+):.* ## \S", MAKEFILE, re.MULTILINE)) == sorted(targets())


def test_commands_and_flags_that_are_named_exist():
    unknown = []
    seen = 0
    for path in (*PAGES, *SCRIPTS):
        for words in commands(path, "reptrt"):
            if not words or not re.match(r"[a-z]+$", words[0]) or words == ["reptrt"]:
                continue  # `COPY reptrt reptrt` is no command
            seen += 1
            command = cli.commands.get(words[0])
            legal = {"--help"} if command is None else flags_of(command)
            if command is None or not {w for w in words if w.startswith("--")} <= legal:
                unknown.append((path.name, words))
    assert seen > 10
    assert unknown == []


def flags_of(command: click.Command) -> set[str]:
    return {flag for parameter in command.params for flag in parameter.opts} | {"--help"}


@each_page
def test_flags_named_alone_exist(page: Path):
    named = {
        words.split()[0]
        for _, words in CODE.findall(page.read_text())
        if re.match(r"--[a-z-]+($|[ =])", words)
    }
    assert named <= set().union(*(flags_of(command) for command in cli.commands.values()))


def test_every_folder_of_code_is_mapped_and_no_other():
    section = (ROOT / "CONTRIBUTING.md").read_text().partition("## Every folder")[2]
    listing = section.partition("```text\n")[2].partition("```")[0]
    lines = [line.partition("  ") for line in listing.splitlines()]
    assert all(description.strip() for _, _, description in lines)
    folders = {
        path.parent.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
    }
    assert sorted(name.strip("/ ") for name, _, _ in lines) == sorted(folders)


def test_the_changelog_starts_with_the_version_of_the_project():
    project = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    newest = re.search(
        r"^## (\S+) \(\d{4}-\d\d-\d\d\)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
    )
    assert project is not None
    assert newest is not None
    assert newest[1] == project[1]
