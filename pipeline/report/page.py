"""Self-contained HTML pages: one style, no script but those of tables, nothing from the network.

Names come from users' files: every one is escaped, and the page forbids itself network access and every
script but ours, by its hash.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from reptrt.engines.artifacts import replace_when_done
from reptrt.engines.foreign.text import visible
from reptrt.pipeline.report import layer_table, number_format, summary


def write_page(
    template: str, view: Mapping[str, object], path: Path, sortable: bool = False
) -> None:
    """Fill `template`, a file of `pipeline/report/templates` that extends page.html.j2.

    Args:
        template: Its name.
        view: What it shows; `command` is what the user typed, or nothing.
        path: The file to write.
        sortable: The page has tables of class `sortable`.
    """
    script = _sorter() if sortable else None
    text = _environment().get_template(template).render(view, **(script or _NO_SCRIPT))
    with replace_when_done(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="xmlcharrefreplace")


_SCRIPTS = ("sort.js", "explore.js")
_NO_SCRIPT: dict[str, object] = {"script": None, "script_hash": None}


def _sorter() -> dict[str, object]:
    """The script of sortable tables, and the hash by which the page allows it."""
    templates = files("reptrt.pipeline.report") / "templates"
    text = "".join((templates / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
    return {"script": Markup(text), "script_hash": f"sha256-{digest}"}


def _shown(value: object) -> object:
    """Text without characters that turn the direction of writing, or that nobody sees."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return "\n".join(map(visible, value.split("\n")))


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("reptrt.pipeline.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    for name in ("number", "significant", "percent", "decibel", "duration", "file_size"):
        environment.filters[name] = getattr(number_format, name)
    environment.filters["zip"] = zip
    environment.filters["layer_line"] = layer_table.describe
    environment.filters["change"] = summary.change
    environment.filters["loss_change"] = summary.loss_change
    return environment
