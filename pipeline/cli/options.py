"""The options of a recipe on the command line: one row for each field."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., None])


class FilePath(click.Path):
    """A path; an empty one, as of a shell variable that is not set, would be the current folder."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Parse, or fail as click does."""
        if value == "":
            self.fail("the path is empty; leave the option out, or say where", param, ctx)
        return super().convert(value, param, ctx)


FILE = FilePath(path_type=Path)


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
    (
        "--min-snr",
        click.FloatRange(0),
        "dB at the outputs; layers stay float until they are reached",
    ),
    ("--softmax", click.Choice(["float", "uniform", "log2"]), "grid of attention's probabilities"),
    ("--reconstruction", KeyValues(), "how blocks are learned, as iterations=100,loss=l2"),
    ("--max-memory", str, "memory for cached activations, as 4GiB; the rest goes to TMPDIR"),
    ("--target", str, "where the engine will run; see `reptrt targets`"),
    (
        "--precision",
        click.Choice(["fp32", "fp16"]),
        "type of all that is not INT8; FP16 on a GPU",
    ),
    ("--num-samples", click.IntRange(1), "number of calibration images"),
    ("--seed", click.IntRange(0), "of every random choice"),
    ("--device", click.Choice(["cpu", "cuda"]), "where PyTorch calibrates"),
    ("--end2end", bool, "a detector's engine also decodes its boxes and runs NMS"),
    ("--score-threshold", click.FloatRange(0, 1, max_open=True), "of --end2end's boxes; 0.25"),
    ("--iou-threshold", click.FloatRange(0, 1), "of --end2end's NMS; 0.65"),
    ("--max-detections", click.IntRange(1), "most boxes of an image with --end2end; 100"),
    ("--max-drop", float, "gate: most points of accuracy that INT8 may lose"),
    ("--batch-size", click.IntRange(1), "fixed batch of the engine; default: dynamic"),
    ("--max-batch", click.IntRange(1), "largest batch of a dynamic engine"),
    ("--opt-batch", click.IntRange(1), "batch that a dynamic engine is made fastest for; 1"),
    ("--workspace-limit", str, "most scratch memory of a kernel, as 1GiB"),
    ("--optimization-level", click.IntRange(0, 5), "0: built fastest, 5: engine fastest; 3"),
    ("--timing-cache", FILE, "folder of kernel timings, shared by builds"),
    ("--version-compatible", bool, "engine for later TensorRT too; larger, may be slower"),
    ("--hardware-compatible", bool, "engine for all GPUs since Ampere; may be slower"),
    ("--image-size", Numbers("SIZE or HEIGHTxWIDTH", "x", 2, int), "input size in pixels"),
    (
        "--task",
        click.Choice(["classification", "detection", "generic"]),
        "of a model of your own; its outputs tell",
    ),
    ("--layout", click.Choice(["crop", "letterbox"]), "how images are fitted to the input"),
    ("--channels", click.Choice(["rgb", "bgr"]), "order in which the network wants them"),
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
