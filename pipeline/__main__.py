"""The command line: `reptrt`, or `python -m pipeline`.

Exit codes: 0 ok, 1 accuracy gate failed, 2 usage or bad input, 3 improvement that the stored
baseline does not claim yet, 4 missing component, 130 interrupted.

PyTorch is imported inside the commands that need it, so that `--help` answers at once.
"""

from __future__ import annotations

import logging
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from rich.console import Console
from rich.table import Table

from engines.artifacts import write_json
from engines.target import TARGETS, resolve_target
from pipeline.progress import ProgressBars
from pipeline.recipe import Recipe, load_recipe, slug
from pipeline.workspace import Workspace, installed_versions, open_workspace

if TYPE_CHECKING:
    from pipeline.run import Run

Command = TypeVar("Command", bound=Callable[..., None])

GATE_FAILED = 1
INTERRUPTED = 130
FILE = click.Path(path_type=Path)

output = Console()
messages = Console(stderr=True)


class Numbers(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4 only
    """Numbers between separators: `0.5,0.5,0.5` or `224x160`; one number stands for all."""

    def __init__(self, name: str, separator: str, count: int, number: type) -> None:
        self.name, self._separator, self._count, self._number = name, separator, count, number

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[Any, ...]:
        """Parse, or fail as click does."""
        try:
            numbers = tuple(self._number(part) for part in str(value).split(self._separator))
        except ValueError:
            numbers = ()
        if len(numbers) == 1:
            numbers *= self._count
        if len(numbers) != self._count:
            self.fail(f"{value!r} is not {self.name}", param, ctx)
        return numbers


class KeyValues(click.ParamType):  # type: ignore[type-arg]
    """`key=value` pairs between commas; the recipe knows which are legal."""

    name = "key=value,..."

    def convert(self, value: Any, param: Any, ctx: Any) -> dict[str, str]:
        """Parse, or fail as click does."""
        pairs = [part.partition("=") for part in str(value).split(",")]
        if not all(key and separator for key, separator, _ in pairs):
            self.fail(f"{value!r} is not {self.name}", param, ctx)
        return {key.strip(): text.strip() for key, _, text in pairs}


# One row per field of `Recipe`: flag, type, help.
RECIPE_OPTIONS: tuple[tuple[str, Any, str], ...] = (
    ("--weights", FILE, "checkpoint: safetensors or a state dict"),
    ("--data", FILE, "calibration images: a folder, .npy or .npz"),
    ("--eval", FILE, "labelled images: ImageFolder, labels.csv or COCO"),
    ("--calibrator", str, "how scales are chosen; see `reptrt calibrators`"),
    ("--weight-bits", click.IntRange(2, 8), "bits of the weights"),
    ("--activation-bits", click.IntRange(2, 8), "bits of the activations"),
    ("--first-last-bits", click.IntRange(2, 8), "least bits of the first and last layers"),
    ("--quantize-head", bool, "quantize a detector's prediction layers too"),
    ("--softmax", click.Choice(["float", "uniform", "log2"]), "grid of attention's probabilities"),
    ("--reconstruction", KeyValues(), "how blocks are learned, as iterations=100,loss=l2"),
    ("--max-memory", str, "memory for cached activations, as 4GiB; the rest goes to TMPDIR"),
    ("--target", str, "where the engine will run; see `reptrt targets`"),
    (
        "--precision",
        click.Choice(["fp32", "fp16"]),
        "type of all that is not INT8; FP16 if there is attention",
    ),
    ("--num-samples", click.IntRange(1), "number of calibration images"),
    ("--seed", click.IntRange(0), "of every random choice"),
    ("--device", click.Choice(["cpu", "cuda"]), "where PyTorch calibrates"),
    ("--max-drop", float, "gate: most points of accuracy that INT8 may lose"),
    ("--batch-size", click.IntRange(1), "fixed batch of the engine; default: dynamic"),
    ("--max-batch", click.IntRange(1), "largest batch of a dynamic engine"),
    ("--image-size", Numbers("SIZE or HEIGHTxWIDTH", "x", 2, int), "input size in pixels"),
    ("--mean", Numbers("R,G,B", ",", 3, float), "of the images, on the 0-1 scale"),
    ("--std", Numbers("R,G,B", ",", 3, float), "of the images, on the 0-1 scale"),
)


def recipe_options(command: Command) -> Command:
    """Give a command MODEL, every recipe option, `--recipe` and `--workspace`."""
    for flag, kind, text in reversed(RECIPE_OPTIONS):
        name = "evaluation" if flag == "--eval" else flag.removeprefix("--").replace("-", "_")
        is_switch = kind is bool
        command = click.option(flag, name, type=kind, is_flag=is_switch, default=None, help=text)(
            command
        )
    command = click.option("--recipe", "recipe_file", type=FILE, help="YAML with any of these")(
        command
    )
    command = click.option(
        "--workspace", type=FILE, default=Path("build"), help="folder for all that is made"
    )(command)
    return click.argument("model")(command)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="reptrt")
def cli() -> None:
    """A PyTorch vision model in, an INT8 TensorRT engine as accurate as FP32 out.

    MODEL is a zoo name (`reptrt models`), timm:NAME, or package.module:callable.
    """


@cli.command()
@recipe_options
@click.option("--json", "as_json", is_flag=True, help="print report.json instead of a table")
def engine(model: str, workspace: Path, recipe_file: Path, as_json: bool, **options: Any) -> None:
    """Walk the whole road: checkpoint in, validated engine and report out."""
    from pipeline.run import run_pipeline

    with open_run(load_recipe(model, options, recipe_file), workspace) as run:
        report = run_pipeline(run)
    show_report(report, run.workspace, as_json)


def add_stage(stage: str, summary: str) -> None:
    """Register the command of one stage of `pipeline.run`."""

    @cli.command(stage, help=summary)
    @recipe_options
    def command(model: str, workspace: Path, recipe_file: Path, **options: Any) -> None:
        import pipeline.run

        with open_run(load_recipe(model, options, recipe_file), workspace) as run:
            getattr(pipeline.run, stage)(run)
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
    from pipeline import run as stages

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
    from calibrators.registry import require_calibrator
    from pipeline.compare import compare_calibrators, comparison_table
    from pipeline.report_comparison import write_comparison

    recipe = load_recipe(model, options, recipe_file)
    names = [name.strip() for name in calibrators.split(",")]
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
@click.argument("file", type=FILE)
@click.option("--batch", type=click.IntRange(1), default=1, help="images per inference")
@click.option("--seconds", type=float, default=5.0, help="how long to measure")
def bench(file: Path, batch: int, seconds: float) -> None:
    """Measure latency p50/p90/p99 and throughput of an ENGINE (on a GPU) or an ONNX file."""
    from pipeline.bench import bench_file, bench_table

    latency, images = bench_file(file, batch, seconds)
    output.print(bench_table(file, latency, images))


@cli.command()
def models() -> None:
    """List the zoo; any timm model is also available as timm:NAME."""
    from models.registry import list_models

    _list(("model", "task", "image", "description"), [
        (spec.name, spec.task, "x".join(map(str, spec.preprocess.image_size)), spec.description)
        for spec in list_models()
    ])  # fmt: skip


@cli.command()
def calibrators() -> None:
    """List the ways to choose scales."""
    from calibrators.registry import AUTO, list_calibrators

    known = list_calibrators().items()
    _list(("calibrator", "what it does"), [
        (AUTO, "repapq for re-parameterized networks, else best"),
        *((name, calibrator.summary) for name, calibrator in known),
    ])  # fmt: skip


@cli.command()
def targets() -> None:
    """List the build targets."""
    _list(("target", "builder", "description"), [
        (target.name, target.backend, target.description) for target in TARGETS.values()
    ])  # fmt: skip


@cli.command()
def doctor() -> None:
    """Say what this machine has: versions, GPU, and what `--target auto` would be."""
    from engines.device import cpu_name, find_gpu

    gpu = find_gpu()
    rows = [(name, version) for name, version in installed_versions().items()]
    rows += [
        ("processor", cpu_name()),
        ("GPU", "none: engines are built, not run" if gpu is None else str(asdict(gpu))),
        ("--target auto", resolve_target("auto").name),
    ]
    _list(("component", "found"), rows)


@contextmanager
def open_run(recipe: Recipe, root: Path) -> Iterator[Run]:
    """Workspace, log file and progress bars of one run; a wrong name leaves no folder behind."""
    from calibrators.registry import require_calibrator
    from models.registry import find_model
    from pipeline.run import Run

    target = resolve_target(recipe.target)
    find_model(recipe.model)
    require_calibrator(recipe.calibrator)
    workspace = open_workspace(root, recipe, target.name)
    handler = logging.FileHandler(workspace.log)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    screen = logging.StreamHandler()
    screen.setLevel(logging.WARNING)
    screen.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    own = [logging.getLogger(name) for name in ("models", "calibrators", "engines", "pipeline")]
    for logger in own:
        logger.setLevel(logging.INFO)
        logger.handlers = [handler, screen]
    logging.getLogger("pipeline").info("command: %s", command_line())
    try:
        with ProgressBars(messages) as progress:
            yield Run(recipe, target, workspace, command_line(), progress)
    finally:
        handler.close()
        for logger in own:
            logger.handlers = []


def show_report(report: dict[str, Any], workspace: Workspace, as_json: bool) -> None:
    """Print the report; leave with 1 when the gate failed."""
    from pipeline.terminal import terminal_table

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
    table = Table(*header, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
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


if __name__ == "__main__":
    main()
