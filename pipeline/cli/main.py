"""The command line: `reptrt`, or `python -m reptrt`.

Exit codes: 0 ok, 1 accuracy gate failed, 2 usage or bad input, 3 improvement that the stored
baseline does not claim yet, 4 missing component, 70 a fault of reptrt, 130 interrupted, 141 nobody reads
the output any more.

PyTorch is imported inside the commands that need it, so that `--help` answers at once.
"""

from __future__ import annotations

import gc
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import click

from reptrt.pipeline.cli import cost_command, run_commands, sweep_command, tool_commands
from reptrt.pipeline.cli.console import INTERRUPTED, leave_unread, messages, show_what_fits
from reptrt.pipeline.cli.explain import explain
from reptrt.pipeline.cli.flags import in_flags

_AGAIN_SECONDS = 0.02

COLLECT_AFTER = (10_000, 10, 10)
"""For Python's garbage collector: with its usual 700 objects it goes a dozen times through all that PyTorch keeps."""


class Commands(click.Group):
    """The group of all commands, whose help lists them below titles."""

    def invoke(self, ctx: click.Context) -> object:
        """Run a command; where nobody reads the output, click's own leaves with 1, a failed gate's code."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            leave_unread()

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write each title, and its commands in the order in which they are used."""
        width = max(len(name) for name in self.commands)
        for title, commands in COMMANDS.items():
            with formatter.section(title):
                limit = formatter.width - width - 6
                formatter.write_dl(
                    [(f"{one.name:<{width}}", one.get_short_help_str(limit)) for one in commands]
                )


COMMANDS: dict[str, Sequence[click.Command]] = {
    "The whole road": (run_commands.engine, run_commands.compare, sweep_command.sweep),
    "One stage": (*run_commands.STAGES, run_commands.report),
    "Deploy": (run_commands.kit, run_commands.triton),
    "Look at one file": (tool_commands.lint, cost_command.cost, tool_commands.bench),
    "Watch over models": (run_commands.regress,),
    "What there is": (
        tool_commands.models,
        tool_commands.calibrators,
        tool_commands.targets,
        tool_commands.doctor,
    ),
}


@click.group(
    cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(package_name="reptrt")
def cli() -> None:
    """A PyTorch or ONNX vision model in, an INT8 TensorRT engine as accurate as FP32 out.

    MODEL is a zoo name (`reptrt models`), timm:NAME, torchvision:NAME, hf-hub:OWNER/NAME,
    package.module:callable or file.onnx.
    """


for command in (command for commands in COMMANDS.values() for command in commands):
    cli.add_command(command)


def main() -> None:
    """Run the command line: one line and an exit code for everything that a user can mend."""
    show_what_fits()
    gc.set_threshold(*COLLECT_AFTER)
    with noted_interrupts() as interrupts:
        try:
            cli(standalone_mode=False)
            if sys.stdout is not None:  # closed by whoever started us
                sys.stdout.flush()
            if interrupts:  # some library swallowed it: the work went on, the wish stands
                raise KeyboardInterrupt
        except click.exceptions.Exit as stop:
            sys.exit(stop.exit_code)
        except BrokenPipeError:
            leave_unread()
        except (Exception, KeyboardInterrupt) as error:
            if not interrupts and not isinstance(error, (KeyboardInterrupt, click.Abort)):
                sys.exit(explain(error, messages, lambda text: in_flags(text, cli)))
            messages.print("\ninterrupted: the same command goes on where this one stopped")
            sys.exit(INTERRUPTED)


@contextmanager
def noted_interrupts() -> Iterator[list[int]]:
    """Collect Ctrl-C and `kill`: libraries turn the KeyboardInterrupt into errors of their own.

    What is half-written is then removed on the way out; a second signal ends the process at once.
    """
    interrupts: list[int] = []
    usual: dict[signal.Signals, signal._HANDLER] = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
    }
    # Where someone ignores or handles one on purpose, it stays so.
    ours = [number for number, handler in usual.items() if signal.getsignal(number) is handler]

    def note(number: int, frame: object) -> None:
        interrupts.append(number)
        for one in ours:
            signal.signal(one, signal.SIG_DFL)
        raise KeyboardInterrupt

    def again(lost: sys.UnraisableHookArgs) -> None:
        """Interrupt once more: Python drops what is raised within a weak reference's callback."""
        if not issubclass(lost.exc_type, KeyboardInterrupt):
            sys.__unraisablehook__(lost)
            return
        for one in ours:
            signal.signal(one, note)
        threading.Timer(_AGAIN_SECONDS, signal.raise_signal, (signal.SIGINT,)).start()

    sys.unraisablehook = again
    for one in ours:
        signal.signal(one, note)
    try:
        yield interrupts
    finally:
        sys.unraisablehook = sys.__unraisablehook__
        for one in ours:
            signal.signal(one, usual[one])
