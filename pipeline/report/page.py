"""Self-contained HTML pages: one style, no scripts, nothing from the network.

Names come from users' files: every one is escaped, and the page forbids itself scripts and network
access.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from reptrt.engines.artifacts import replace_when_done
from reptrt.engines.foreign.text import visible
from reptrt.pipeline.report import number_format, summary


def write_page(template: str, view: Mapping[str, object], path: Path) -> None:
    """Fill `template`, a file of `pipeline/report/templates` that extends page.html.j2.

    Args:
        template: Its name.
        view: What it shows; `command` is what the user typed, or nothing.
        path: The file to write.
    """
    text = _environment().get_template(template).render(view)
    with replace_when_done(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="xmlcharrefreplace")


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
    environment.filters["change"] = summary.change
    environment.filters["loss_change"] = summary.loss_change
    return environment
