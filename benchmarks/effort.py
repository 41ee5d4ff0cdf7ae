"""Time whole runs and calibrations: the table and the chart of docs/effort.md. Wants an idle machine.

    python benchmarks/effort.py --data $REPTRT_DATA [--rows yolov6s,demo] [--repeat 3] [--efforts auto,high]
    python benchmarks/effort.py --data $REPTRT_DATA --twice demo
    python benchmarks/effort.py --data $REPTRT_DATA --chart docs/effort.svg

Each run has a folder of its own, so nothing is taken from an earlier one. Wall and processor seconds, and
the most memory, are those of the process, as the kernel counts them. Random weights get the statistics of
their BatchNorms from a batch of the images.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import torch
from safetensors.torch import save_file

from reptrt.models.registry import find_model
from reptrt.models.spec import Preprocess
from reptrt.pipeline.data.datasets import open_images

STATISTICS_IMAGES = 16
SIZES, COUNTS = (160, 224, 320, 448, 640), (32, 64)
WIDTH, HEIGHT, MARGIN, STEP = 420, 300, 60, 50
COLORS = ("#2b6cb0", "#2f855a", "#b7791f", "#805ad5", "#c53030")


@dataclass(frozen=True)
class Row:
    """One line of the table; paths are below the data folder.

    Attributes:
        model: MODEL of `reptrt`.
        weights: checkpoint, `random`, or None for the bundled one.
        images: calibration images.
        labelled: to measure accuracy on; None for no accuracy.
        options: more flags.
    """

    model: str
    weights: str | None = None
    images: str | None = None
    labelled: str | None = None
    options: tuple[str, ...] = ()


MOBILEONE = ("mobileone_s0", "weights/mobileone_s0_fused_imagenet1k.pth", "images/imagenet_calib")
REPVGG = ("repvgg_a0", "weights/repvgg_a0_imagenette.pth", "images/imagenette_train")
ALL = ("--quantize", "all")  # else calibration has little to do where FP16 is as fast
SIX_BITS = (*ALL, "--weight-bits", "6", "--activation-bits", "6")
ROWS = {
    "yolov6s": Row("yolov6s", "random", "images/imagenet_calib"),
    "yolov6n": Row("yolov6n", "random", "images/imagenet_calib", None, ("--num-samples", "128")),
    "mobileone": Row(*MOBILEONE, "images/imagenet_val", ALL),
    "mobileone-6": Row(*MOBILEONE, "images/imagenet_val", SIX_BITS),
    "repvgg-6": Row(*REPVGG, "images/imagenette_val", SIX_BITS),
    "lite": Row(
        "weights/yolov6lite_s_coco.onnx", None, "images/coco_calib", "images/coco_val", ALL
    ),
    "demo": Row("yolov6n_demo"),
}


@dataclass(frozen=True)
class Spent:
    """What a process took, and what came of it.

    Attributes:
        wall: seconds of the clock.
        processor: seconds of processors.
        peak_mb: the most memory.
        calibrate: seconds of the stage, by the clock.
        drop: points of accuracy; nan without labelled images.
        agreement: percent, with FP32; nan likewise.
    """

    wall: float
    processor: float
    peak_mb: float
    calibrate: float
    drop: float
    agreement: float


def main() -> None:
    """Print the table, the ratio of two at once, or draw the chart."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of weights and images")
    parser.add_argument("--rows", default=",".join(ROWS), help="of the table")
    parser.add_argument("--efforts", default="auto", help="low,auto,high")
    parser.add_argument("--repeat", type=int, default=1, help="runs; medians are printed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--twice", choices=ROWS, help="this row alone, then two of it at once")
    parser.add_argument("--chart", type=Path, help="SVG: cost against images and pixels")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.twice:
            print_twice(options.twice, options.data, Path(folder))
        elif options.chart:
            draw_chart(options.chart, options.data, Path(folder))
        else:
            print_table(options, Path(folder))


def print_table(options: argparse.Namespace, folder: Path) -> None:
    """One row per model and effort."""
    header = ("row", "effort", *(field.name for field in fields(Spent)))
    print(f"| {' | '.join(header)} |\n{'|---' * len(header)}|", flush=True)
    for name in options.rows.split(","):
        for effort in options.efforts.split(","):
            more = ("--effort", effort, "--seed", str(options.seed))
            command = engine_command(ROWS[name], options.data, folder, more)
            runs = [run([command], folder)[0] for _ in range(options.repeat)]
            medians = [
                statistics.median(column) for column in zip(*map(astuple, runs), strict=True)
            ]
            cells = " | ".join(f"{value:.2f}" for value in medians)
            print(f"| {name} | {effort} | {cells} |", flush=True)


def print_twice(name: str, data: Path, folder: Path) -> None:
    """How much longer two runs take together than one alone."""
    command = engine_command(ROWS[name], data, folder, ())
    alone = run([command], folder)[0].wall
    together = max(one.wall for one in run([command, command], folder))
    print(
        f"{name}: alone {alone:.1f} s, two at once {together:.1f} s: {together / alone:.2f} times"
    )


def draw_chart(path: Path, data: Path, folder: Path) -> None:
    """Processor seconds of calibrating every layer of YOLOv6-N against pixels, a line per number of images."""
    lines: list[list[float]] = []
    for count in COUNTS:
        lines.append([])
        for size in SIZES:
            sizes = ("--num-samples", str(count), "--image-size", str(size))
            more = (*sizes, *ALL, "--min-snr", "0")
            command = engine_command(ROWS["yolov6n"], data, folder, more)
            command[1] = "calibrate"
            lines[-1].append(run([command], folder)[0].processor)
            print(f"{count} images of {size} px: {lines[-1][-1]:.1f} s", flush=True)
    path.write_text(chart(lines), encoding="utf-8")


def engine_command(row: Row, data: Path, folder: Path, more: Sequence[str]) -> list[str]:
    """`reptrt engine` of a row; random weights are made where they are not there yet."""
    is_file = row.model.endswith(".onnx")
    command = ["reptrt", "engine", str(data / row.model) if is_file else row.model]
    if row.weights == "random":
        weights = folder / f"{row.model}.safetensors"
        if not weights.exists():
            write_random_weights(row.model, data / str(row.images), weights)
        command += ["--weights", str(weights)]
    elif row.weights is not None:
        command += ["--weights", str(data / row.weights)]
    for flag, value in (("--data", row.images), ("--eval", row.labelled)):
        command += [] if value is None else [flag, str(data / value)]
    return [*command, *row.options, *more]


def write_random_weights(model: str, images: Path, path: Path) -> None:
    """Random weights whose BatchNorms have the statistics of a few images."""
    preprocess = Preprocess((640, 640), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), layout="letterbox")
    torch.manual_seed(0)
    module = find_model(model).build(None, (640, 640)).train()
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = None  # the mean over all batches
    with torch.no_grad():
        for batch in open_images(images, preprocess, limit=STATISTICS_IMAGES, seed=0).batches(2):
            module(torch.from_numpy(batch))
    save_file({name: tensor.contiguous() for name, tensor in module.state_dict().items()}, path)


def run(commands: Sequence[list[str]], folder: Path) -> list[Spent]:
    """Run `commands` at once, each in an empty workspace.

    Raises:
        SystemExit: one of them fails; a failed gate is none.
    """
    started, running = time.monotonic(), {}
    for index, command in enumerate(commands):
        workspace = folder / f"workspace-{index}"
        shutil.rmtree(workspace, ignore_errors=True)
        line = [sys.executable, "-m", *command, "--workspace", str(workspace)]
        with (folder / f"log-{index}").open("w") as log:
            process = subprocess.Popen(line, stdout=log, stderr=log)
        running[process.pid] = (index, process)
    spent: dict[int, Spent] = {}
    while len(spent) < len(commands):
        pid, status, usage = os.wait4(-1, 0)
        index, _ = running[pid]
        if os.waitstatus_to_exitcode(status) not in (0, 1):
            raise SystemExit((folder / f"log-{index}").read_text(encoding="utf-8")[-2000:])
        processor = usage.ru_utime + usage.ru_stime
        run_json = next((folder / f"workspace-{index}").glob("*/*-w*/*/run.json"))
        seconds = json.loads(run_json.read_text())["stages"]["calibrate"]["seconds"]
        validation, accuracy = run_json.with_name("validation.json"), {}
        if validation.exists():
            accuracy = json.loads(validation.read_text())["accuracy"] or {}
        spent[index] = Spent(
            time.monotonic() - started,
            processor,
            usage.ru_maxrss / 1e3,
            seconds,
            accuracy.get("drop", math.nan),
            accuracy.get("agreement", math.nan),
        )
    return [spent[index] for index in range(len(commands))]


def chart(lines: Sequence[Sequence[float]]) -> str:
    """Draw `lines` against the pixels of `SIZES`."""
    most, widest = max(map(max, lines)), max(SIZES) ** 2

    def x(size: float) -> float:
        return MARGIN + WIDTH * size**2 / widest

    def y(seconds: float) -> float:
        return MARGIN + HEIGHT * (1 - seconds / most)

    style = "font-family:sans-serif;font-size:12px;fill:#222"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH + 3 * MARGIN} {HEIGHT + 2 * MARGIN}" '
        f'style="{style}"><rect width="100%" height="100%" fill="#fff"/>',
        f'<text x="{MARGIN}" y="24">Calibrating YOLOv6-N: processor seconds against pixels of an image</text>',
    ]
    for seconds in range(0, int(most) + 1, STEP):
        at = y(seconds)
        parts.append(
            f'<line x1="{MARGIN}" y1="{at:.1f}" x2="{MARGIN + WIDTH}" y2="{at:.1f}" stroke="#ddd"/>'
            f'<text x="{MARGIN - 8}" y="{at + 4:.1f}" text-anchor="end">{seconds} s</text>'
        )
    for seconds, count, color in zip(lines, COUNTS, COLORS, strict=False):
        path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in zip(SIZES, seconds, strict=True))
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>'
            f'<text x="{x(SIZES[-1]) + 6:.1f}" y="{y(seconds[-1]) + 4:.1f}">{count} images</text>'
        )
    parts += [
        f'<text x="{x(size):.1f}" y="{MARGIN + HEIGHT + 18}" text-anchor="middle">{size}²</text>'
        for size in SIZES[::2]
    ]
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    main()
