"""The tables of docs/results.md as data: docs/results/<section>.json, from which the page gets them.

    python benchmarks/result_tables.py          # write the tables of the page from the data
    python benchmarks/result_tables.py --read   # write the data from a page that was edited by hand

A column whose cells are all numbers of as many decimals, or empty, is one of numbers; others are text.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1] / "docs"
_HEADING = re.compile(r"^#+ (.+)$")
_NUMBER = re.compile(r"−?\d+(?:\.(\d+))?")
_MINUS = "−"

Table = dict[str, Any]
"""`columns`: [{name, decimals}], `decimals` null for text; `rows`: lists of numbers, text and null."""


def read_tables(page: str) -> dict[str, list[Table]]:
    """Tables by the section that they stand in, as a file name; in order."""
    found: dict[str, list[Table]] = {}
    for section, lines, is_table in _blocks(page):
        if is_table:
            found.setdefault(section, []).append(_parse(lines))
    return found


def with_tables(page: str, tables: dict[str, list[Table]]) -> str:
    """The page with each table made from its data; a section without data keeps its tables."""
    waiting = {section: iter(rows) for section, rows in tables.items()}
    parts: list[str] = []
    for section, lines, is_table in _blocks(page):
        parts += _render(next(waiting[section])) if is_table and section in waiting else lines
    return "\n".join(parts) + "\n"


def _blocks(page: str) -> Iterator[tuple[str, list[str], bool]]:
    """(section, lines, whether they are a table): whole tables, and each other line for itself."""
    section, table, is_code = "", [], False
    for line in page.splitlines():
        is_code ^= line.startswith("```")
        if line.startswith("|") and not is_code:
            table.append(line)
            continue
        if table:
            yield section, table, True
            table = []
        if (heading := _HEADING.match(line)) and not is_code:
            section = re.sub(r"\W+", "-", heading[1].lower()).strip("-")
        yield section, [line], False
    if table:
        yield section, table, True


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def _parse(lines: list[str]) -> Table:
    names, rows = _cells(lines[0]), [_cells(line) for line in lines[2:]]
    columns = [
        {"name": name, "decimals": _decimals([row[at] for row in rows])}
        for at, name in enumerate(names)
    ]
    return {
        "columns": columns,
        "rows": [
            [_value(cell, column["decimals"]) for cell, column in zip(row, columns, strict=True)]
            for row in rows
        ],
    }


def _decimals(cells: list[str]) -> int | None:
    """Of a column of numbers; None of a column of text."""
    found = [_NUMBER.fullmatch(cell) for cell in cells if cell]
    lengths = {len(one[1] or "") if one else None for one in found}
    return lengths.pop() if len(lengths) == 1 else None


def _value(cell: str, decimals: int | None) -> str | float | None:
    if decimals is None:
        return cell
    number = cell.replace(_MINUS, "-")
    return None if not cell else float(number) if decimals else int(number)


def _render(table: Table) -> list[str]:
    names = [column["name"] for column in table["columns"]]
    rows = [
        [_text(one, column["decimals"]) for one, column in zip(row, table["columns"], strict=True)]
        for row in table["rows"]
    ]
    rule = f"|{'---|' * len(names)}"
    return [_line(names), rule, *map(_line, rows)]


def _line(cells: list[str]) -> str:
    return f"|{'|'.join(f' {cell} ' if cell else ' ' for cell in cells)}|"


def _text(value: str | float | None, decimals: int | None) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return f"{value:.{decimals or 0}f}".replace("-", _MINUS)


def load_tables() -> dict[str, list[Table]]:
    """What stands in docs/results, by section; the chart's data are no table."""
    files = sorted((DOCS / "results").glob("*.json"))
    loaded = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}
    return {name: content for name, content in loaded.items() if isinstance(content, list)}


def dump(tables: list[Table]) -> str:
    """JSON with a line for each column and each row."""
    parts = []
    for table in tables:
        lines = {
            key: ",\n    ".join(json.dumps(one, ensure_ascii=False) for one in table[key])
            for key in ("columns", "rows")
        }
        parts.append(
            f'{{"columns": [\n    {lines["columns"]}],\n  "rows": [\n    {lines["rows"]}]}}'
        )
    return f"[{', '.join(parts)}]\n"


def main() -> None:
    """Write the page from the data, or the data from the page."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--read", action="store_true", help="write the data from the page")
    page = DOCS / "results.md"
    text = page.read_text(encoding="utf-8")
    if options.parse_args().read:
        for section, tables in read_tables(text).items():
            (DOCS / "results" / f"{section}.json").write_text(dump(tables), encoding="utf-8")
    else:
        page.write_text(with_tables(text, load_tables()), encoding="utf-8")


if __name__ == "__main__":
    main()
