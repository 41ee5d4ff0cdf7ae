"""Evaluate many images in one process and in several: the same metrics, memory, seconds. Wants an idle machine.

    python benchmarks/large_evaluation.py --images 50000 --workers 1,2

Images are drawn noise in tar shards, labels are drawn too; the two networks are one with random weights and a copy
whose weights are rounded to 6 bits. Each evaluation has a process of its own. Workers read this file too, so what
only drawing needs is imported there.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import multiprocessing
import resource
import tarfile
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from reptrt.calibrators.progress import no_progress
from reptrt.engines.runtime.runners import OnnxRuntimeRunner
from reptrt.models.card import ModelCard
from reptrt.models.spec import Preprocess
from reptrt.pipeline.data.datasets import open_classification
from reptrt.pipeline.validation.evaluate import evaluate
from reptrt.pipeline.validation.shards import Spread, evaluate_in_parts

if TYPE_CHECKING:
    from torch import nn

SIZE, CLASSES, A_SHARD = 64, 100, 5_000
PREPROCESS = Preprocess((SIZE, SIZE), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
CARD = ModelCard("random", "classification", PREPROCESS, CLASSES, None, ("logits",))


def main() -> None:
    """Print a row for each number of workers, and whether all of them found the same."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--workers", default="1,2")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_networks(folder)
        write_shards(folder / "images", options.images)
        print("| workers | seconds | largest process, MB |\n|---|---|---|", flush=True)
        found = []
        for workers in map(int, options.workers.split(",")):
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                metrics, seconds, peak = pool.submit(work, folder, workers).result()
            found.append(metrics)
            print(f"| {workers} | {seconds:.1f} | {peak / 1e3:.0f} |", flush=True)
    same = all(metrics == found[0] for metrics in found)
    print(f"metrics: {found[0]}\nthe same to the last digit: {'yes' if same else 'NO'}")


def write_networks(folder: Path) -> None:
    """fp32.onnx and int8.onnx."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    widths = (3, 16, 32, 64)
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Conv2d(before, after, 3, 2, 1), nn.ReLU()]
    network = nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], CLASSES)
    )
    export(network.eval(), folder / "fp32.onnx")
    with torch.no_grad():
        for parameter in network.parameters():
            step = parameter.abs().max() / 31
            parameter.copy_((parameter / step).round() * step)
    export(network, folder / "int8.onnx")


def export(network: nn.Module, path: Path) -> None:
    """Write `network` for any batch."""
    import torch

    torch.onnx.export(
        network, (torch.zeros(1, 3, SIZE, SIZE),), path, dynamo=False,
        input_names=["images"], output_names=["logits"], dynamic_axes={"images": {0: "batch"}},
    )  # fmt: skip


def write_shards(folder: Path, count: int) -> None:
    """`count` labelled JPEG images."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for start in range(0, count, A_SHARD):
        with tarfile.open(folder / f"{start:08}.tar", "w") as shard:
            for index in range(start, min(start + A_SHARD, count)):
                stream = io.BytesIO()
                small = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(small).resize((96, 80)).save(stream, "jpeg")
                add(shard, f"{index:08}.jpg", stream.getvalue())
                add(shard, f"{index:08}.cls", str(rng.integers(CLASSES)).encode())


def add(shard: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add one file."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    shard.addfile(member, io.BytesIO(content))


def work(folder: Path, workers: int) -> tuple[str, float, int]:
    """Metrics as JSON, seconds, and the most kB that one process held."""
    started = time.monotonic()
    images = open_classification(folder / "images", PREPROCESS, CLASSES)
    runners: Any = (
        OnnxRuntimeRunner(folder / "fp32.onnx"),
        OnnxRuntimeRunner(folder / "int8.onnx"),
    )
    if workers == 1:
        with runners[0], runners[1]:
            found = evaluate(*runners, CARD, images, None, no_progress)
    else:
        found = evaluate_in_parts(*runners, CARD, images, None, no_progress, Spread(workers))
    seconds = time.monotonic() - started
    held = (
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return json.dumps(asdict(found.accuracy)), seconds, max(held)


if __name__ == "__main__":
    main()
