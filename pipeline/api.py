"""The face in Python: quantize, load, lint and compare.

The command line does the same through the same functions: whatever is an option there is an argument
here, under the same name and checked in the same way.
"""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeGuard

from rich.console import Console
from torch import nn

from reptrt.calibrators.names import require_calibrator
from reptrt.calibrators.progress import Progress, no_progress
from reptrt.engines.comparison_record import ComparisonRow
from reptrt.engines.lint import Finding, lint_file
from reptrt.engines.report_schema import Report, Verdict
from reptrt.models.load import LoadedModel, load_model, load_module
from reptrt.pipeline.compare import compare_calibrators
from reptrt.pipeline.data.datasets import DataError, EvaluationSet
from reptrt.pipeline.data.demo_data import scenes_ahead
from reptrt.pipeline.data.in_memory import (
    ImageSource,
    Metric,
    MetricFunction,
    store_images,
    store_labelled,
    store_masked,
)
from reptrt.pipeline.data.stored_feeds import MOST_STORED, STORED, sample_feed
from reptrt.pipeline.deploy.passed import Evidence, copy_with_evidence, refuse_failed
from reptrt.pipeline.gate import is_gated
from reptrt.pipeline.open_run import Caller, open_run
from reptrt.pipeline.progress import ProgressBars
from reptrt.pipeline.quantized_file import FloatOrigin
from reptrt.pipeline.recipe import Recipe, RecipeError, load_recipe
from reptrt.pipeline.report.terminal import terminal_table
from reptrt.pipeline.road import run_pipeline
from reptrt.pipeline.stated_preprocess import stated_preprocess
from reptrt.pipeline.validation.remembered import MOST_BYTES, OutputMemory
from reptrt.pipeline.workspace.folder import Workspace

ModelSource: TypeAlias = "str | Path | nn.Module | LoadedModel"
"""A MODEL string, a network in memory, or what `load` returned."""

Evaluate: TypeAlias = "str | Path | Iterable[Any] | Metric | MetricFunction"
"""A labelled folder, a loader of (images, labels), or a function `f(predict) -> float`."""

ProgressOption: TypeAlias = "bool | Progress | None"
"""None: bars in a terminal or a notebook; True: bars; False: silence; or a function of one's own."""


@dataclass(frozen=True)
class Result:
    """What a run made.

    Attributes:
        report: everything that is known about it.
        workspace: its files.
    """

    report: Report
    workspace: Workspace

    @property
    def engine(self) -> Path:
        """The engine, or for the target `cpu` the ONNX file that ONNX Runtime fuses."""
        return self.workspace.engine

    @property
    def onnx(self) -> Path:
        """The Q/DQ model as TensorRT wants it: the engine is built from it, on any machine."""
        return self.workspace.trt_onnx

    @property
    def page(self) -> Path:
        """The report as one HTML page."""
        return self.workspace.report_html

    @property
    def verdict(self) -> Verdict:
        """Whether the result is good enough, what to deploy, and why."""
        return self.report.verdict

    def save(self, folder: str | Path) -> Path:
        """Copy every file of the run into `folder`, which is made; return it.

        The ONNX files there hold verdict, accuracy and predicted cost in their metadata.

        Raises:
            GateError: the gate failed, and the recipe does not force it.
        """
        refuse_failed(self.verdict, str(folder))
        evidence = Evidence(self.verdict, self.report.accuracy, self.report.cost)
        target = Path(folder)
        shutil.copytree(
            self.workspace.folder,
            target,
            dirs_exist_ok=True,
            ignore=shutil.ignore_patterns("*.unfinished", ".*"),
        )
        for path in (self.workspace.trt_onnx, self.workspace.end2end_onnx, self.workspace.engine):
            if path.exists() and path.suffix == ".onnx":
                copy_with_evidence(path, target / path.name, evidence)
        return target

    def __repr__(self) -> str:
        console = Console(width=100, emoji=False)
        with console.capture() as captured:
            console.print(terminal_table(self.report))
        return captured.get()

    def _repr_html_(self) -> str:
        """Show the table in a notebook."""
        console = Console(width=100, emoji=False, record=True, file=io.StringIO())
        console.print(terminal_table(self.report))
        return console.export_html(inline_styles=True, code_format="<pre>{code}</pre>")


def quantize(
    model: ModelSource,
    images: ImageSource | None = None,
    *,
    evaluate: Evaluate | None = None,
    workspace: str | Path = "build",
    recipe: str | Path | None = None,
    progress: ProgressOption = None,
    **options: Any,
) -> Result:
    """Take a model to a validated INT8 engine.

    Args:
        model: zoo name, `timm:NAME`, `package.module:callable`, `file.onnx`, or an `nn.Module` in
            evaluation mode, which is copied. It takes images `[n, 3, h, w]`.
        images: to calibrate with; no labels. A folder or an `.npy` or `.npz` file, an array or tensor,
            a DataLoader, or any iterable of batches: normalized floats `[n, 3, h, w]`, or uint8
            `[n, h, w, 3]` RGB, which are prepared as the model's preprocessing says. A tuple's first
            member, and a dict's `images` or `pixel_values`, are the images. None: the demo's own.
        evaluate: measures accuracy. A labelled folder or COCO file, a loader that yields
            `(images, labels)`, of a segmentation network `(images, masks)`, or a function `f(predict) -> float`, more is better, where `predict`
            takes images and returns the network's output. None: `max_drop` and `min_agreement` are held against
            how far INT8 answers as FP32 does, on images that calibration left.
        workspace: folder for all that is made; a run that was stopped goes on there.
        recipe: YAML file with any of the options.
        progress: None shows bars where someone looks, False nothing; or a function
            `f(description, done, total)`.
        **options: every option of `reptrt engine`, with the same names: `target`, `calibrator`,
            `weight_bits`, `max_drop`, `seed`, ... (`reptrt engine --help`).

    Returns:
        The report and the files.

    Raises:
        RecipeError: an option is unknown or out of range.
        UnknownModelError, DataError, CheckpointError, ...: one line each, with an `exit_code`.
        MissingComponentError: this machine cannot build for the target.
    """
    chosen = _recipe(model, images, evaluate, recipe, options)
    root = Path(workspace)
    chosen = _with_images(chosen, images, evaluate, root)
    network = _network(model, evaluate, chosen, root)
    measure = _measure(evaluate, root, network)
    with (
        scenes_ahead(chosen, root),
        _progress(progress) as show,
        open_run(chosen, root, Caller(_call("quantize", chosen), show), network, measure) as run,
    ):
        report = run_pipeline(run)
        return Result(report, run.workspace)


def load(model: str, weights: str | Path | None = None, **options: Any) -> LoadedModel:
    """Read a float network with its weights, for `quantize` or to look at.

    Args:
        model: zoo name, `timm:NAME`, `package.module:callable` or `file.onnx`.
        weights: checkpoint; None takes the bundled or published one.
        **options: `image_size`, `mean`, `std`, `layout`, `channels`, `task`, `requantize`,
            `float_model`.

    Raises:
        UnknownModelError, CheckpointError, MissingWeightsError, ...: one line each.
    """
    recipe = load_recipe(model, {**options, "weights": weights})
    return _load(recipe)


def lint(file: str | Path) -> tuple[Finding, ...]:
    """Say what TensorRT 10 and 11 refuse or run slowly in an ONNX file, worst first.

    Raises:
        ModelFileError: it is no ONNX file.
    """
    return tuple(lint_file(Path(file)))


def compare(
    model: ModelSource,
    images: ImageSource | None = None,
    *,
    calibrators: Sequence[str],
    evaluate: Evaluate | None = None,
    workspace: str | Path = "build",
    progress: ProgressOption = None,
    **options: Any,
) -> tuple[ComparisonRow, ...]:
    """Take one model through several calibrators; one row each.

    Args:
        model: see `quantize`.
        images: see `quantize`.
        calibrators: names, as `reptrt calibrators` lists them.
        evaluate: see `quantize`.
        workspace: folder for all that is made.
        progress: see `quantize`.
        **options: every option of `reptrt compare`.

    Raises:
        UnknownCalibratorError: one of the names, said before the first one runs; others as `quantize`.
    """
    for name in calibrators:
        require_calibrator(name)
    chosen = _recipe(model, images, evaluate, None, options)
    root = Path(workspace)
    chosen = _with_images(chosen, images, evaluate, root)
    network = _network(model, evaluate, chosen, root)
    measure = _measure(evaluate, root, network)
    rows, memory = [], OutputMemory(MOST_BYTES)
    with _progress(progress) as show:
        for name in dict.fromkeys(calibrators):
            one = chosen.model_copy(update={"calibrator": name})
            caller = Caller(_call("compare", one), show, memory=memory)
            with open_run(one, root, caller, network, measure) as run:
                rows.append(compare_calibrators(run))
    return tuple(rows)


def _recipe(
    model: ModelSource,
    images: ImageSource | None,
    evaluate: Evaluate | None,
    file: str | Path | None,
    options: dict[str, Any],
) -> Recipe:
    """The recipe of these arguments; what is in memory comes later."""
    for argument, field in (("images", "data"), ("evaluate", "evaluation")):
        if field in options:
            raise RecipeError(f"{field}: in Python it is the argument `{argument}`")
    values = dict(options)
    if isinstance(images, (str, Path)):
        values["data"] = Path(images)
    if isinstance(evaluate, (str, Path)):
        values["evaluation"] = Path(evaluate)
    return load_recipe(_name(model), values, None if file is None else Path(file))


def _name(model: ModelSource) -> str:
    if isinstance(model, LoadedModel):
        return model.name
    return type(model).__name__ if isinstance(model, nn.Module) else str(model)


def _network(
    model: ModelSource, evaluate: Evaluate | None, recipe: Recipe, root: Path
) -> LoadedModel | None:
    """The network, where it is in memory or a loader has to be read for it."""
    if isinstance(model, LoadedModel):
        return model
    if isinstance(model, nn.Module):
        feed = sample_feed(recipe.data, root / STORED, recipe.num_samples)
        return load_module(model, recipe.model, stated_preprocess(recipe), recipe.task, feed)
    if _is_loader(evaluate):
        return _load(recipe)
    return None


def _load(recipe: Recipe) -> LoadedModel:
    return load_model(
        recipe.model,
        recipe.weights,
        overrides=stated_preprocess(recipe),
        task=recipe.task,
        float_of=FloatOrigin.of(recipe),
    )


def _with_images(
    recipe: Recipe, images: ImageSource | None, evaluate: Evaluate | None, root: Path
) -> Recipe:
    if images is None or isinstance(images, (str, Path)):
        return recipe
    limit = recipe.num_samples or MOST_STORED
    if is_gated(recipe) and evaluate is None:  # which is judged by those that do not calibrate
        limit = max(limit, MOST_STORED)
    return recipe.model_copy(update={"data": store_images(images, root / STORED, limit)})


def _measure(
    evaluate: Evaluate | None, root: Path, network: LoadedModel | None
) -> EvaluationSet | None:
    """What measures accuracy, where it is in memory."""
    if network is not None and _is_loader(evaluate):
        if network.task == "segmentation":
            return store_masked(evaluate, root / "images", network.preprocess, network.num_classes)
        if network.task != "classification":
            raise DataError(
                f"evaluate: a loader of (images, labels) measures classifiers, and {network.name} is a"
                f" {network.task} network: give a folder with a COCO file, or a function f(predict)"
            )
        return store_labelled(evaluate, root / STORED, network.preprocess, network.num_classes)
    if evaluate is None or isinstance(evaluate, (str, Path)):
        return None
    if isinstance(evaluate, MetricFunction):
        return evaluate
    if not callable(evaluate):
        raise DataError(
            f"evaluate: a {type(evaluate).__name__} is no labelled folder, loader or function"
        )
    return MetricFunction(getattr(evaluate, "__name__", "metric"), evaluate)


def _is_loader(evaluate: Evaluate | None) -> TypeGuard[Iterable[Any]]:
    return isinstance(evaluate, Iterable) and not isinstance(evaluate, str)


@contextmanager
def _progress(option: ProgressOption) -> Iterator[Progress]:
    if option is False or (option is None and not _is_watched()):
        yield no_progress
    elif option is None or option is True:
        with ProgressBars(Console(stderr=True, emoji=False)) as bars:
            yield bars
    else:
        yield option


def _is_watched() -> bool:
    return sys.stderr.isatty() or "ipykernel" in sys.modules


def _call(function: str, recipe: Recipe) -> str:
    """The call, as records and reports show it."""
    stated = recipe.model_dump(mode="json", exclude_defaults=True, exclude={"model"})
    arguments = "".join(f", {name}={value!r}" for name, value in stated.items())
    return f"reptrt.{function}({recipe.model!r}{arguments})"
