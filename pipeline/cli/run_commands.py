"""The commands that walk the road, or part of it: each opens a run and calls its stages."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from reptrt.calibrators.names import require_calibrator
from reptrt.engines.artifacts import write_json
from reptrt.engines.foreign.log_format import VisibleFormatter
from reptrt.engines.target import load_backend, resolve_target
from reptrt.models.names import require_model_name
from reptrt.pipeline.cli.console import (
    GATE_FAILED,
    command_line,
    json_option,
    messages,
    output,
    print_json,
    print_path,
    print_table,
)
from reptrt.pipeline.cli.options import (
    FILE,
    RecipeCommand,
    quiet_option,
    recipe_options,
    verbose_option,
)
from reptrt.pipeline.data.demo_data import scenes_ahead
from reptrt.pipeline.progress import ProgressBars, StageLines
from reptrt.pipeline.recipe import (
    BoxSuppression,
    Gate,
    Recipe,
    RecipeError,
    Section,
    load_recipe,
    slug,
)
from reptrt.pipeline.regression.baselines import BASELINES
from reptrt.pipeline.workspace.folder import Workspace, variant
from reptrt.pipeline.workspace.run_records import RECORDS

if TYPE_CHECKING:
    from reptrt.engines.report_schema import Report
    from reptrt.pipeline.run import Run
    from reptrt.pipeline.validation.remembered import OutputMemory


PATHS = ("weights", "data", "evaluation", "float_model")
"""Fields of a recipe that name what is read."""
SHOWN_CHOICES = (
    "calibrator", "effort", "weight_bits", "activation_bits", "target", "precision", "quantize",
    "channel_scaling", "min_snr", "max_drop", "batch_size", "device", "threads",
)  # fmt: skip
"""Fields of a plan that a dry run shows; `--json` has all."""


junit_option = click.option(
    "--junit", type=FILE, help="write the gate's checks there, as JUnit's XML for a CI"
)


@click.command(cls=RecipeCommand, short_help="Checkpoint in, validated engine and report out.")
@recipe_options()
@click.option("--dry-run", is_flag=True, help="say what would run, for how long, and run nothing")
@junit_option
@json_option
def engine(
    model: str,
    workspace: Path,
    recipe_file: Path,
    dry_run: bool,
    junit: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Walk the whole road: checkpoint in, validated engine and report out."""
    recipe = read_recipe(model, options, recipe_file)
    if dry_run:
        show_dry_run(recipe, workspace, as_json)
        return
    load_backend(resolve_target(recipe.target))  # what is missing is said before PyTorch is there
    with scenes_ahead(recipe, workspace):
        from reptrt.pipeline.road import run_pipeline

        with open_run(recipe, workspace) as run:
            report = run_pipeline(run)
    show_report(report, run.workspace, as_json, junit)


def stage_command(stage: str, summary: str, *unheeded: type[Section]) -> click.Command:
    """Command of one stage of `reptrt.pipeline.stages`, without the sections that it does not heed."""

    @click.command(stage, help=summary, cls=RecipeCommand)
    @recipe_options(*unheeded)
    @json_option
    def command(
        model: str, workspace: Path, recipe_file: Path, as_json: bool, **options: Any
    ) -> None:
        recipe = read_recipe(model, options, recipe_file)
        from reptrt.pipeline import stages
        from reptrt.pipeline.workspace.folder import stage_records

        with open_run(recipe, workspace) as run:
            getattr(stages, stage)(run)
        if as_json:
            record = stage_records(run.workspace).get(stage)
            written = None if record is None else record.model_dump(mode="json")
            print_json({"folder": str(run.workspace.folder), stage: written})
        else:
            print_path(messages, run.workspace.folder, f"{stage}: done, in ")

    return command


STAGES = (
    stage_command(
        "calibrate", "Choose scales: calibration.safetensors and scales.json.", BoxSuppression, Gate
    ),
    stage_command("export", "Write model.fp32.onnx, model.qdq.onnx and model.trt.onnx.", Gate),
    stage_command("build", "Build model.engine and say what runs in INT8: fusion.json.", Gate),
    stage_command("validate", "Compare INT8 with FP32: validation.json."),
)


@click.command(cls=RecipeCommand)
@recipe_options()
@junit_option
@json_option
def report(
    model: str,
    workspace: Path,
    recipe_file: Path,
    junit: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Write report.json and report.html, and show the table."""
    recipe = read_recipe(model, options, recipe_file)
    from reptrt.pipeline import stages

    with open_run(recipe, workspace) as run:
        content = stages.report(run)
    show_report(content, run.workspace, as_json, junit)


@click.command(cls=RecipeCommand)
@recipe_options()
@click.option("--calibrators", required=True, help="names, separated by commas")
@json_option
def compare(
    model: str, workspace: Path, recipe_file: Path, calibrators: str, as_json: bool, **options: Any
) -> None:
    """Take one model through several calibrators; one table."""
    recipe = read_recipe(model, options, recipe_file)
    names = list(dict.fromkeys(name.strip() for name in calibrators.split(",")))
    for name in names:
        require_calibrator(name)  # a wrong name is said before the first one runs
    from reptrt.pipeline.compare import compare_calibrators, comparison_table
    from reptrt.pipeline.report.comparison import write_comparison
    from reptrt.pipeline.validation.remembered import MOST_BYTES, OutputMemory

    recipes = [recipe.model_copy(update={"calibrator": name}) for name in names]
    rows, memory = [], OutputMemory(MOST_BYTES)
    for one in recipes:
        with open_run(one, workspace, memory) as run:
            rows.append(compare_calibrators(run))
    path = workspace / slug(model) / f"compare-{variant(recipe)}.json"
    write_json({"model": model, "command": command_line(), "rows": rows}, path)
    page = path.with_suffix(".html")
    write_comparison(rows, recipe, command_line(), page)
    if as_json:
        print(path.read_text(), end="")
    else:
        output.print(comparison_table(rows))
    print_path(messages, page)


@click.command(
    cls=RecipeCommand, short_help="Pack what builds, checks and installs the engine there."
)
@recipe_options()
@click.option("--output", "archive", type=FILE, help="a .tar.gz; default: in the workspace")
@json_option
def kit(
    model: str,
    workspace: Path,
    recipe_file: Path,
    archive: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Pack what builds, checks and installs the engine on its device: one archive.

    Calibrates and exports first, where that is not done yet; builds nothing here.
    """
    recipe = read_recipe(model, options, recipe_file)
    from reptrt.pipeline.deploy.kit import make_kit

    with open_run(recipe, workspace) as run:
        written = make_kit(run, archive)
    show_written(written, as_json)


@click.command(cls=RecipeCommand, short_help="Add the engine to a model repository of Triton.")
@recipe_options()
@click.option("--output", "repository", type=FILE, required=True, help="Triton's model repository")
@click.option("--name", help="of the model there; default: that of MODEL")
@click.option("--version", type=click.IntRange(1), help="its number; default: the next")
@click.option("--instances", type=click.IntRange(1), default=1, help="on each GPU, or on the CPU")
@click.option(
    "--keep-config", is_flag=True, help="leave a config.pbtxt and labels.txt that were edited"
)
@json_option
def triton(
    model: str,
    workspace: Path,
    recipe_file: Path,
    repository: Path,
    as_json: bool,
    **options: Any,
) -> None:
    """Add the engine, or the ONNX file of --target cpu, to a model repository of Triton.

    Calibrates, exports and builds first, where that is not done yet.
    """
    serving = {key: options.pop(key) for key in ("name", "version", "instances", "keep_config")}
    recipe = read_recipe(model, options, recipe_file)
    from reptrt.pipeline.deploy.triton import add_to_repository

    with open_run(recipe, workspace) as run:
        folder = add_to_repository(run, repository, **serving)
    show_written(folder, as_json)


@click.command(short_help="Run models again, and compare with what was measured.")
@click.argument("entries", nargs=-1)
@click.option(
    "--record", type=FILE, help="folder of a finished run: append its entry to --baselines"
)
@click.option("--baselines", type=FILE, default=BASELINES, help="YAML; default: what reptrt ships")
@click.option("--files", type=FILE, default=Path(), envvar="REPTRT_DATA", help="weights and images")
@click.option("--target", help="where the engines will run; see `reptrt targets`")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="where PyTorch calibrates")
@click.option("--workspace", type=FILE, default=Path("build"), help="folder for all that is made")
@quiet_option
@verbose_option
@json_option
def regress(
    entries: Sequence[str],
    record: Path | None,
    baselines: Path,
    files: Path,
    workspace: Path,
    as_json: bool,
    **options: Any,
) -> None:
    """Run ENTRIES of the baselines, or all; leave with 1 if one is worse, 3 if better than claimed.

    build/regress gets summary.md, results.json and junit.xml.
    """
    from reptrt.pipeline.regression.regress import exit_code, run_entries
    from reptrt.pipeline.regression.summary import (
        RESULTS,
        job_annotations,
        regression_table,
        write_summary,
    )

    if record is not None:
        from reptrt.pipeline.regression.record import record_run

        name = record_run(record, baselines, files)
        if as_json:
            print_json({"entry": name, "baselines": str(baselines)})
        else:
            print_path(messages, baselines, f"{name}: recorded in ")
        return
    folder = workspace / "regress"
    findings = run_entries(baselines, entries, files, folder, options)
    summary = write_summary(findings, folder)
    if as_json:
        print((folder / RESULTS).read_text(), end="")
    else:
        output.print(regression_table(findings))
        print_path(output, summary)
    for line in job_annotations(findings) if os.environ.get("GITHUB_ACTIONS") else ():
        messages.print(line, markup=False, highlight=False, soft_wrap=True)
    sys.exit(exit_code(findings))


def read_recipe(model: str, options: dict[str, Any], file: Path | None) -> Recipe:
    """The recipe of a command, whose names and paths are checked before PyTorch is imported, which takes seconds.

    Raises:
        RecipeError, UnknownTargetError, UnknownCalibratorError, UnknownModelError: something in it is not legal.
    """
    recipe = load_recipe(model, options, file)
    resolve_target(recipe.target)
    require_calibrator(recipe.calibrator)
    require_model_name(recipe.model)
    for name in PATHS:
        path = getattr(recipe, name)
        if path is not None and not path.exists():
            raise RecipeError(f"{path}: does not exist; give a path for `{name}` that does")
    return recipe


@contextmanager
def open_run(recipe: Recipe, root: Path, memory: OutputMemory | None = None) -> Iterator[Run]:
    """A run whose progress and warnings are shown, as `--verbose` and `--quiet` of the command say."""
    from reptrt.pipeline.open_run import Caller
    from reptrt.pipeline.open_run import open_run as open_in

    screen = logging.StreamHandler()
    said = click.get_current_context().meta
    screen.setLevel(logging.INFO if said.get("reptrt.verbose") else logging.WARNING)
    screen.setFormatter(VisibleFormatter("%(levelname)s: %(message)s"))
    with ProgressBars(messages, quiet=said.get("reptrt.quiet", False)) as progress:
        screens = (screen, StageLines(progress))
        caller = Caller(command_line(), progress, say_waiting, screens, memory)
        with open_in(recipe, root, caller) as run:
            yield run


def say_waiting(workspace: Workspace) -> None:
    """Say why nothing happens."""
    print_path(messages, workspace.folder, "another process works there, waiting for it: ")


def show_written(path: Path, as_json: bool) -> None:
    """Say what was written."""
    if as_json:
        print_json({"written": str(path)})
    else:
        print_path(messages, path)


def show_dry_run(recipe: Recipe, root: Path, as_json: bool) -> None:
    """Say what a run of `recipe` would do; its folder stays as it was."""
    from reptrt.pipeline.dry_run import dry_run

    with open_run(recipe, root) as run:
        is_new = not (run.workspace.folder / RECORDS).exists()
        planned = dry_run(run)
    if is_new:
        shutil.rmtree(run.workspace.folder)
    if as_json:
        print_json(asdict(planned))
        return
    images = f"{planned.calibration_images} for calibration"
    if planned.labelled_images is not None:
        images += f", {planned.labelled_images} labelled"
    if planned.compared_images is not None:
        images += f", {planned.compared_images} without labels to compare INT8 with FP32"
    chosen = {name: str(planned.plan[name]) for name in SHOWN_CHOICES}
    print_table(("", ""), [*chosen.items(), ("images", images), ("folder", planned.folder)])
    output.print()
    print_table(("stage", "", "seconds", "known from"), [
        (one.name, one.state, f"{one.seconds:.0f}", one.source) for one in planned.stages
    ])  # fmt: skip
    minutes, memory = planned.seconds / 60, planned.memory_bytes / 2**30
    output.print(
        f"\nabout {minutes:.1f} minutes, {memory:.0f} GiB of memory at most", highlight=False
    )


def show_report(report: Report, workspace: Workspace, as_json: bool, junit: Path | None) -> None:
    """Print the report; leave with 1 when the gate failed."""
    from reptrt.pipeline.report.junit import gate_cases, write_junit
    from reptrt.pipeline.report.terminal import terminal_table

    if junit is not None:
        write_junit("reptrt", list(gate_cases(report)), junit)
    if as_json:
        print(workspace.report_json.read_text(), end="")
    else:
        output.print(terminal_table(report))
        print_path(output, workspace.report_html)
    if report.verdict.stops:
        sys.exit(GATE_FAILED)
