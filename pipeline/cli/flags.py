"""How the options that messages name are spelled on the command line."""

from __future__ import annotations

import click

from reptrt.engines.option_names import as_flags

_ALIASES = {"evaluate": "--eval", "evaluation": "--eval"}
"""Names that arguments in Python have and flags have not."""


def in_flags(message: str, command: click.Command) -> str:
    """`message` as a user of `command`, or of a group of commands, reads it."""
    return as_flags(message, _flags(command))


def _flags(command: click.Command) -> dict[str, str]:
    flags = dict(_ALIASES)
    for option in command.params:
        if isinstance(option, click.Option) and option.name is not None:
            flag = next(name for name in option.opts if name.startswith("--"))
            flags |= {option.name: flag, flag.removeprefix("--").replace("-", "_"): flag}
    for below in command.commands.values() if isinstance(command, click.Group) else ():
        flags |= _flags(below)
    return flags
