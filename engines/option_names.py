"""Options in messages: arguments in Python, flags on a command line.

A message names an option in backquotes, as Python writes it: `image_size`, `target="cpu"`. A command
line shows such a message with its own spelling: --image-size, --target cpu.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_OPTION = re.compile(r'`(\w+)(?:=("[^"`]*"|[^`"\s]+))?`')


def as_flags(message: str, flags: Mapping[str, str]) -> str:
    """`message` with its options as flags; what is no option stays as it is.

    Args:
        message: what an exception or a report says.
        flags: name of an argument -> flag, as `image_size` -> `--image-size`.
    """

    def flag(found: re.Match[str]) -> str:
        name, value = found[1], (found[2] or "").strip('"')
        if name not in flags:
            return found[0]
        return f"{flags[name]} {value}" if value and value != "True" else flags[name]

    return _OPTION.sub(flag, message)
