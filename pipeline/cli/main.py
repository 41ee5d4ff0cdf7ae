"""The command line: `reptrt`, or `python -m reptrt`.

Exit codes: 0 ok, 1 accuracy gate failed, 2 usage or bad input, 3 improvement that the stored
baseline does not claim yet, 4 missing component, 130 interrupted.

PyTorch is imported inside the commands that need it, so that `--help` answers at once.
"""

from __future__ import annotations

import json
import logging
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from reptrt.engines.artifacts import write_json
from reptrt.engines.target import resolve_target
from reptrt.pipeline.cli.cost_command import cost
from reptrt.pipeline.cli.options import FILE, recipe_options
from reptrt.pipeline.cli.progress import ProgressBars
from reptrt.pipeline.recipe import Recipe, load_recipe, slug
from reptrt.pipeline.regression.baselines import BASELINES
from reptrt.pipeline.workspace import Workspace, hold_workspace, open_workspace

if TYPE_CHECKING:
    from reptrt.pipeline.run import Run

GATE_FAILED = 1
INTERRUPTED = 130

output = Console(emoji=False)
messages = Console(stderr=True, emoji=False)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="reptrt")
def cli() -> None:
    """A PyTorch vision model in, an INT8 TensorRT engine as accurate as FP32 out.

    MODEL is a zoo name (`reptrt models`), timm:NAME, package.module:callable or file.onnx.
    """


cli.add_command(cost)


@cli.command()
@recipe_options
@click.option("--json", "as_json", is_flag=True, help="print report.json instead of a table")
def engine(model: str, workspace: Path, recipe_file: Path, as_json: bool, **options: Any) -> None:
    """Walk the whole road: checkpoint in, validated engine and report out."""
    from reptrt.pipeline.stages import run_pipeline

    with open_run(load_recipe(model, options, recipe_file), workspace) as run:
        report = run_pipeline(run)
    show_report(report, run.workspace, as_json)


def add_stage(stage: str, summary: str) -> None:
    """Register the command of one stage of `reptrt.pipeline.stages`."""

    @cli.command(stage, help=summary)
    @recipe_options
    def command(model: str, workspace: Path, recipe_file: Path, **options: Any) -> None:
        import reptrt.pipeline.stages

        with open_run(load_recipe(model, options, recipe_file), workspace) as run:
            getattr(reptrt.pipeline.stages, stage)(run)
        print_path(messages, run.workspace.folder, f"{stage}: done, in ")


add_stage("calibrate", "Choose scales: calibration.safetensors and scales.json.")
add_stage("export", "Write model.fp32.onnx, model.qdq.onnx and model.trt.onnx.")
add_stage("build", "Build model.engine and say what runs in INT8: fusion.json.")
add_stage("validate", "Compare INT8 with FP32: validation.json.")


@cli.command()
@recipe_options
@click.option("--json", "as_json", is_flag=True, help="print report.json instead of a table")
def report(model: str, workspace: Path, recipe_file: Path, as_json: bool, **options: Any) -> None:
    """Write report.json and report.html, and show the table."""
    from reptrt.pipeline import stages

    with open_run(load_recipe(model, options, recipe_file), workspace) as run:
        content = stages.report(run)
    show_report(content, run.workspace, as_json)


@cli.command()
@recipe_options
@click.option("--calibrators", required=True, help="names, separated by commas")
def compare(
    model: str, workspace: Path, recipe_file: Path, calibrators: str, **options: Any
) -> None:
    """Take one model through several calibrators; one table."""
    from reptrt.calibrators.registry import require_calibrator
    from reptrt.pipeline.compare import compare_calibrators, comparison_table
    from reptrt.pipeline.report.comparison import write_comparison

    recipe = load_recipe(model, options, recipe_file)
    names = list(dict.fromkeys(name.strip() for name in calibrators.split(",")))
    for name in names:
        require_calibrator(name)  # a wrong name is said before the first one runs
    recipes = [recipe.model_copy(update={"calibrator": name}) for name in names]
    rows = []
    for one in recipes:
        with open_run(one, workspace) as run:
            rows.append(compare_calibrators(run))
    path = workspace / slug(model) / f"compare-w{recipe.weight_bits}a{recipe.activation_bits}.json"
    write_json({"model": model, "command": command_line(), "rows": rows}, path)
    page = path.with_suffix(".html")
    write_comparison(rows, recipe, command_line(), page)
    output.print(comparison_table(rows))
    print_path(messages, page)


@cli.command()
@recipe_options
@click.option("--output", "archive", type=FILE, help="a .tar.gz; default: in the workspace")
def kit(
    model: str, workspace: Path, recipe_file: Path, archive: Path | None, **options: Any
) -> None:
    """Pack what builds, checks and installs the engine on its device: one archive.

    Calibrates and exports first, where that is not done yet; builds nothing here.
    """
    from reptrt.pipeline.deploy.kit import make_kit

    with open_run(load_recipe(model, options, recipe_file), workspace) as run:
        written = make_kit(run, archive)
    print_path(messages, written)


@cli.command()
@recipe_options
@click.option("--output", "repository", type=FILE, required=True, help="Triton's model repository")
@click.option("--name", help="of the model there; default: that of MODEL")
@click.option("--version", type=click.IntRange(1), help="its number; default: the next")
@click.option("--instances", type=click.IntRange(1), default=1, help="on each GPU, or on the CPU")
@click.option("--keep-config", is_flag=True, help="leave a config.pbtxt that was edited")
def triton(
    model: str, workspace: Path, recipe_file: Path, repository: Path, **options: Any
) -> None:
    """Add the engine, or the ONNX file of --target cpu, to a model repository of Triton.

    Calibrates, exports and builds first, where that is not done yet.
    """
    from reptrt.pipeline.deploy.triton import add_to_repository

    serving = {key: options.pop(key) for key in ("name", "version", "instances", "keep_config")}
    with open_run(load_recipe(model, options, recipe_file), workspace) as run:
        folder = add_to_repository(run, repository, **serving)
    print_path(messages, folder)


@cli.command()
@click.argument("file", type=FILE)
@click.option("--batch", type=click.IntRange(1), default=1, help="images per inference")
@click.option("--seconds", type=float, default=5.0, help="how long to measure")
@click.option("--trusted", is_flag=True, help="let a version-compatible engine run what it carries")
def bench(file: Path, batch: int, seconds: float, trusted: bool) -> None:
    """Measure latency p50/p90/p99 and throughput of an ENGINE (on a GPU) or an ONNX file."""
    from reptrt.pipeline.cli.bench import bench_file, bench_table

    output.print(bench_table(file, bench_file(file, batch, seconds, trusted)))


@cli.command()
@click.argument("file", type=FILE)
@click.option("--fix", "fixed", type=FILE, help="write a file with all repaired that can be")
@click.option("--no-build", is_flag=True, help="do not ask TensorRT-RTX, though it is installed")
@click.option("--json", "as_json", is_flag=True, help="print the findings as JSON")
def lint(file: Path, fixed: Path | None, no_build: bool, as_json: bool) -> None:
    """Say what TensorRT 10 and 11 refuse or run slowly in an ONNX FILE; leave with 1 if they refuse.

    Needs no GPU. TensorRT-RTX is asked too, where it is installed, and its kernels are listed.
    """
    from reptrt.engines.lint import Severity, lint_file
    from reptrt.engines.lint.repair import repair_file, repaired
    from reptrt.engines.lint.rtx import RtxVerdict, ask_rtx
    from reptrt.engines.lint.show import lint_json, lint_lines

    findings, gone = lint_file(file), None
    if fixed is not None:
        repair_file(file, fixed)
        before, file = findings, fixed
        findings = lint_file(file)
        gone = repaired(before, findings)
    verdict = RtxVerdict(skipped="not asked") if no_build else ask_rtx(file)
    findings = (*verdict.findings(), *findings)
    if as_json:
        print(json.dumps(lint_json(file, findings, verdict, gone), indent=2))
    else:
        print("\n".join(lint_lines(file, findings, verdict, gone)))
    if any(finding.severity is Severity.ERROR for finding in findings):
        sys.exit(GATE_FAILED)


@cli.command()
@click.argument("entries", nargs=-1)
@click.option("--baselines", type=FILE, default=BASELINES, help="YAML; default: what reptrt ships")
@click.option("--files", type=FILE, default=Path(), envvar="REPTRT_DATA", help="weights and images")
@click.option("--target", help="where the engines will run; see `reptrt targets`")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="where PyTorch calibrates")
@click.option("--workspace", type=FILE, default=Path("build"), help="folder for all that is made")
def regress(
    entries: Sequence[str], baselines: Path, files: Path, workspace: Path, **options: Any
) -> None:
    """Run ENTRIES of the baselines, or all; leave with 1 if one is worse, 3 if better than claimed."""
    from reptrt.pipeline.regression.regress import exit_code, run_entries
    from reptrt.pipeline.regression.summary import regression_table, write_summary

    folder = workspace / "regress"
    findings = run_entries(baselines, entries, files, folder, options)
    output.print(regression_table(findings))
    print_path(output, write_summary(findings, folder))
    sys.exit(exit_code(findings))


@cli.command()
def models() -> None:
    """List the zoo; any timm model is also available as timm:NAME."""
    from reptrt.models.registry import list_models

    _list(("model", "task", "image", "description"), [
        (spec.name, spec.task, "x".join(map(str, spec.preprocess.image_size)), spec.description)
        for spec in list_models()
        if spec.task and spec.preprocess  # as every model of the zoo states
    ])  # fmt: skip


@cli.command()
def calibrators() -> None:
    """List the ways to choose scales."""
    from reptrt.calibrators.registry import AUTO, list_calibrators

    known = list_calibrators().items()
    _list(("calibrator", "what it does"), [
        (AUTO, "repq-vit or repquant for transformers, repapq for re-parameterized networks and ONNX, else best"),
        *((name, calibrator.summary) for name, calibrator in known),
    ])  # fmt: skip


@cli.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="print all that is known, as JSON")
def targets(name: str | None, as_json: bool) -> None:
    """List the build targets, or say all that is known about the one called NAME."""
    from reptrt.pipeline.cli.target_list import HEADER, target_facts, target_json, target_rows

    chosen = None if name is None else resolve_target(name)
    if as_json:
        print(json.dumps(target_json(chosen), indent=2))
    elif chosen is None:
        _list(HEADER, target_rows())
    else:
        _list(("", ""), target_facts(chosen))


@cli.command()
def doctor() -> None:
    """Say what this machine has, what works on it, and what to install for the rest."""
    from reptrt.pipeline.cli.doctor import abilities, found_components

    _list(("component", "found"), found_components())
    output.print()
    _list(("", "what works here", "what it takes"), [
        ("no" if ability.remedy else "yes", ability.name, ability.remedy) for ability in abilities()
    ])  # fmt: skip


@contextmanager
def open_run(recipe: Recipe, root: Path) -> Iterator[Run]:
    """Workspace, log file and progress bars of one run; a wrong name leaves no folder behind."""
    from reptrt.calibrators.registry import require_calibrator
    from reptrt.models.registry import find_model
    from reptrt.pipeline.run import Run

    target = resolve_target(recipe.target)
    find_model(recipe.model)
    require_calibrator(recipe.calibrator)
    workspace = open_workspace(root, recipe, target.name)
    with hold_workspace(workspace, lambda: say_waiting(workspace)), log_to(workspace.log):
        logging.getLogger("reptrt").info("command: %s", command_line())
        with ProgressBars(messages) as progress:
            yield Run(recipe, target, workspace, command_line(), progress)


def say_waiting(workspace: Workspace) -> None:
    """Say why nothing happens."""
    print_path(messages, workspace.folder, "another process works there, waiting for it: ")


@contextmanager
def log_to(file: Path) -> Iterator[None]:
    """Log of our packages into `file`, warnings on the screen too."""
    logging.raiseExceptions = False  # on a full disk, who writes the artifact says so once
    handler = logging.FileHandler(file)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    screen = logging.StreamHandler()
    screen.setLevel(logging.WARNING)
    screen.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    own = logging.getLogger("reptrt")
    own.setLevel(logging.INFO)
    own.handlers = [handler, screen]
    try:
        yield
    finally:
        with suppress(OSError):
            handler.close()
        own.handlers = []


def show_report(report: dict[str, Any], workspace: Workspace, as_json: bool) -> None:
    """Print the report; leave with 1 when the gate failed."""
    from reptrt.pipeline.report.terminal import terminal_table

    if as_json:
        print(workspace.report_json.read_text(), end="")
    else:
        output.print(terminal_table(report))
        print_path(output, workspace.report_html)
    if report["gate"]["passed"] is False:
        sys.exit(GATE_FAILED)


def print_path(console: Console, path: Path, before: str = "") -> None:
    """Print `path` on one line, so that it can be copied."""
    console.print(f"{before}{path}", style="dim", markup=False, highlight=False, soft_wrap=True)


def command_line() -> str:
    """What the user typed, as it can be typed again."""
    return shlex.join(["reptrt", *sys.argv[1:]])


def _list(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    first, *others = header
    table = Table(Column(first, no_wrap=True), *others, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*map(escape, row))
    output.print(table)


def main() -> None:
    """Run the command line: one line and an exit code for everything that a user can mend."""
    with noted_interrupts() as interrupts:
        try:
            cli(standalone_mode=False)
        except click.exceptions.Exit as stop:
            sys.exit(stop.exit_code)
        except (Exception, KeyboardInterrupt) as error:
            if not interrupts and not isinstance(error, (KeyboardInterrupt, click.Abort)):
                sys.exit(explain(error))
            messages.print("\ninterrupted: the same command goes on where this one stopped")
            sys.exit(INTERRUPTED)


def explain(error: BaseException) -> int:
    """Print what the user can mend and return its exit code; a bug keeps its traceback."""
    if isinstance(error, click.ClickException):
        error.show()
        return error.exit_code
    code = getattr(error, "exit_code", None)
    if not isinstance(code, int):
        raise error
    messages.print(f"reptrt: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
    return code


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
