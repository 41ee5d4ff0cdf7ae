"""Run another program; where it fails, say so in one line."""

from __future__ import annotations

import shlex
import subprocess
import sys


class CommandError(RuntimeError):
    """A program stops with an error; the message ends with its last line."""

    exit_code = 2


def run_command(command: list[str]) -> None:
    """Run `command`; what it prints is kept for the message of an error.

    Raises:
        CommandError: it fails.
    """
    print(f"+ {shlex.join(command)}", file=sys.stderr)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last_line = ((done.stderr or done.stdout).strip().splitlines() or ["no message"])[-1]
        raise CommandError(f"{shlex.join(command[:4])} ... fails: {last_line}")
