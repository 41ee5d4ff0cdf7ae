"""What the site makes of the pages: links to files outside docs/, help of commands, names for screen readers."""

from __future__ import annotations

import posixpath
import re
from typing import Any

import click

from reptrt.pipeline.cli.main import COMMANDS

_LINK = re.compile(r"\]\(((?:\.\./)+[^)#]+)(#[^)]*)?\)")
_WIDTH = 100


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Put the help in, and point relative links that leave docs/ to the repository's page of that file."""
    folder = posixpath.dirname(page.file.src_uri)

    def outside(found: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join("docs", folder, found[1]))
        if path.startswith("docs/"):
            return found[0]
        return f"]({config.repo_url}/blob/main/{path}{found[2] or ''})"

    return _LINK.sub(outside, markdown.replace("<!-- commands -->", _commands()))


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Name the theme's search dialog."""
    return output.replace('role="dialog"', 'role="dialog" aria-label="Search"', 1)


def _commands() -> str:
    """A section for each command, with what `reptrt COMMAND --help` shows."""
    parts = []
    for title, commands in COMMANDS.items():
        parts.append(f"## {title}\n")
        for command in commands:
            parent = click.Context(click.Group("reptrt"), info_name="reptrt")
            settings = {"max_content_width": _WIDTH, "terminal_width": _WIDTH}
            context = click.Context(command, info_name=command.name, parent=parent, **settings)
            parts.append(f"### {command.name}\n\n```text\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)
