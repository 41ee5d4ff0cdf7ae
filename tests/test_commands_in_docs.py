"""Every command and every block of Python on the site runs here, or its title says what it needs."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from tests.command_line import TinyProject, reptrt
from tests.onnx_files import write_onnx

DOCS = Path(__file__).parents[1] / "docs"
BLOCK = re.compile(r"^```(bash|python)(.*)\n((?:.*\n)*?)```$", re.MULTILINE)
NEEDS = re.compile(r' title="needs: [a-z][^"]+"')
GATE_CODES = (0, 1)
"""A gate may fail on so few images; anything else is wrong."""


def runnable(page: Path) -> list[tuple[str, str]]:
    """Language and text of the blocks whose title does not say that they need something."""
    found = BLOCK.findall(page.read_text())
    assert {title for _, title, _ in found if title and not NEEDS.fullmatch(title)} == set()
    return [(language, text) for language, title, text in found if not title]


PAGES = [page for page in sorted(DOCS.rglob("*.md")) if runnable(page)]


@pytest.fixture
def sandbox(
    tiny: TinyProject,
    red_and_blue: Path,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """The folder of a reader: images, labelled ones, an ONNX file that classifies them, quantized files."""
    import tiny_models  # of the fixture `tiny`

    shutil.copytree(red_and_blue, tmp_path / "labelled")
    (tmp_path / "images").mkdir()
    for path in sorted(red_and_blue.rglob("*.png"))[::4]:
        shutil.copy(path, tmp_path / "images" / f"{path.parent.name}-{path.name}")
    (tmp_path / "path" / "to").mkdir(parents=True)
    write_onnx(tiny_models.colours().eval(), tmp_path / "path" / "to" / "model.onnx")
    for name in ("model.trt.onnx", "quantized.onnx"):
        shutil.copy(tiny.files_of(finished) / "model.trt.onnx", tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_tutorials_are_run() -> None:
    assert {DOCS / "tutorials" / f"{name}.md" for name in ("engineer", "ci", "research")} <= {
        *PAGES
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_says_runs(page: Path, sandbox: Path) -> None:
    for language, text in runnable(page):
        if language == "python":
            exec(compile(text, str(page), "exec"), {"__name__": "__main__"})
            continue
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if not words:
                continue
            assert words[0] == "reptrt", line
            outcome = reptrt(*words[1:])
            assert outcome.code in GATE_CODES, f"{line}\n{outcome.err}"
