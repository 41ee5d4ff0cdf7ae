"""Messages name arguments; the command line shows flags."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from reptrt.pipeline.cli.flags import in_flags
from reptrt.pipeline.cli.main import cli
from reptrt.pipeline.recipe import Recipe

ROOT = Path(__file__).parents[3]
COMMAND_LINES = {
    *("engines/kit/program.py", "models/demo/train.py"),  # have their own
    "engines/option_names.py",  # explains both spellings
    "engines/cost/constants.py",  # says how to call a script
    "pipeline/recipe.py",  # its descriptions are the help of the command line
}
FIELDS = "|".join(field.replace("_", "-") for field in (*Recipe.model_fields, "eval"))
FILES = [
    file
    for package in ("models", "calibrators", "engines", "pipeline")
    for file in sorted((ROOT / package).rglob("*.py"))
    if "cli" not in file.parts and file.relative_to(ROOT).as_posix() not in COMMAND_LINES
]


def texts(file: Path) -> list[str]:
    tree = ast.parse(file.read_text())
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]


def test_no_text_outside_the_command_line_names_a_flag_of_the_recipe() -> None:
    flag = re.compile(rf"--({FIELDS})\b(?!-)")
    named = {
        (file.name, found[0])
        for file in FILES
        for text in texts(file)
        if (found := flag.search(text))
    }
    assert len(FILES) > 150
    assert named == set()


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("lower `num_samples` or raise `max_memory`", "lower --num-samples or raise --max-memory"),
        (
            'no labelled images (`evaluate`), `device="cpu"`',
            "no labelled images (--eval), --device cpu",
        ),
        ("give `fix` another name, `keep_config`", "give --fix another name, --keep-config"),
        ("choose another `output` or `workspace`", "choose another --output or --workspace"),
    ],
)
def test_the_command_line_spells_every_option_as_its_flag(message: str, expected: str) -> None:
    assert in_flags(message, cli) == expected
