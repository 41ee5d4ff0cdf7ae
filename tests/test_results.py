"""The tables of docs/results.md, and the data that they are made of."""

from __future__ import annotations

from xml.etree import ElementTree

from benchmarks.figures import FIGURES
from benchmarks.result_tables import DOCS, dump, load_tables, read_tables, with_tables

PAGE = (DOCS / "results.md").read_text(encoding="utf-8")
AGAIN = "edit docs/results/*.json and run benchmarks/result_tables.py, or the page and run it with --read"


def test_every_table_of_the_results_is_made_of_its_data() -> None:
    assert with_tables(PAGE, load_tables()) == PAGE, AGAIN
    assert read_tables(PAGE) == load_tables(), AGAIN
    assert sum(map(len, load_tables().values())) > 20


def test_figures_are_those_that_the_script_draws() -> None:
    for name, draw in FIGURES.items():
        assert (DOCS / "figures" / f"{name}.svg").read_text(encoding="utf-8") == draw()
        ElementTree.fromstring(draw())


def test_numbers_are_numbers_and_every_file_has_a_line_for_each_row() -> None:
    page = "# A b\n\n| what | drop |\n|---|---|\n| x, 8 | −0.50 |\n| y | |\n\n```\n| no | table |\n```\n"
    tables = read_tables(page)
    assert tables == {
        "a-b": [
            {
                "columns": [{"name": "what", "decimals": None}, {"name": "drop", "decimals": 2}],
                "rows": [["x, 8", -0.5], ["y", None]],
            }
        ]
    }
    assert with_tables(page, tables) == page
    assert with_tables(page.replace("−0.50", "9.99"), tables) == page
    for section, found in load_tables().items():
        assert (DOCS / "results" / f"{section}.json").read_text(encoding="utf-8") == dump(found)
