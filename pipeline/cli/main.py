"""The command line: `reptrt`, or `python -m reptrt`.

Exit codes: 0 ok, 1 accuracy gate failed, 2 usage or bad input, 3 improvement that the stored
baseline does not claim yet, 4 missing component, 70 a fault of reptrt, 130 interrupted.

PyTorch is imported inside the commands that need it, so that `--help` answers at once.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from reptrt.pipeline.cli import cost_command, run_commands, tool_commands
from reptrt.pipeline.cli.console import INTERRUPTED, messages
from reptrt.pipeline.cli.explain import explain
from reptrt.pipeline.cli.flags import in_flags


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="reptrt")
def cli() -> None:
    """A PyTorch vision model in, an INT8 TensorRT engine as accurate as FP32 out.

    MODEL is a zoo name (`reptrt models`), timm:NAME, package.module:callable or file.onnx.
    """


for command in (
    run_commands.engine,
    *run_commands.STAGES,
    run_commands.report,
    run_commands.compare,
    run_commands.kit,
    run_commands.triton,
    run_commands.regress,
    cost_command.cost,
    tool_commands.bench,
    tool_commands.lint,
    tool_commands.models,
    tool_commands.calibrators,
    tool_commands.targets,
    tool_commands.doctor,
):
    cli.add_command(command)


def main() -> None:
    """Run the command line: one line and an exit code for everything that a user can mend."""
    with noted_interrupts() as interrupts:
        try:
            cli(standalone_mode=False)
        except click.exceptions.Exit as stop:
            sys.exit(stop.exit_code)
        except (Exception, KeyboardInterrupt) as error:
            if not interrupts and not isinstance(error, (KeyboardInterrupt, click.Abort)):
                sys.exit(explain(error, messages, lambda text: in_flags(text, cli)))
            messages.print("\ninterrupted: the same command goes on where this one stopped")
            sys.exit(INTERRUPTED)


@contextmanager
def noted_interrupts() -> Iterator[list[int]]:
    """Collect Ctrl-C: libraries turn the KeyboardInterrupt into errors of their own."""
    interrupts: list[int] = []

    def note(number: int, frame: object) -> None:
        interrupts.append(number)
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # else someone ignores or handles it on purpose
        signal.signal(signal.SIGINT, note)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, before)
