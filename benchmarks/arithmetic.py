"""Arithmetic of a calibration beside what the processor can do: the tables of docs/effort.md.

    python benchmarks/arithmetic.py kernels
    python benchmarks/arithmetic.py calibration MODEL --weights FILE --data FOLDER [--bits 6x6] [--num-samples 64]
    python benchmarks/arithmetic.py promise MODEL --weights FILE --data FOLDER [--bits 6x6] [--num-samples 64]

`kernels` times single operators, in FP32 and bf16, contiguous and channels last. `calibration` counts the
multiplications and additions of convolutions and matrix products, forward and backward, and divides by the time of
another run, which does not count, and by the fastest matrix product of this machine. `promise` says what the progress of
a calibration promised: the time that seemed to be left after some shares of the run, beside the time that was left. All
want an idle machine.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from reptrt.calibrators.base import Batches, Calibrator
from reptrt.calibrators.quantized.quantized_model import QuantizedModel
from reptrt.calibrators.registry import create_calibrator
from reptrt.calibrators.settings import Settings
from reptrt.models.load import load_model
from reptrt.models.spec import PreprocessOverrides
from reptrt.pipeline.data.datasets import open_images
from reptrt.pipeline.data.feeds import PictureFeeds
from reptrt.pipeline.data.torch_batches import calibration_batches
from reptrt.pipeline.export.prepare import open_network
from reptrt.pipeline.plan import choose_device
from reptrt.pipeline.recipe import load_recipe

REPEATS = 9
SIDE = 2048  # of the matrices whose product is the peak


@dataclass(frozen=True)
class Convolution:
    """One row of `kernels`."""

    channels: int
    kernel: int
    side: int
    images: int
    groups: int = 1

    def __str__(self) -> str:
        """Name it as the table does."""
        kind = " depthwise" if self.groups > 1 else ""
        size = f"{self.kernel}x{self.kernel}{kind}, {self.channels} channels"
        return f"{size}, {self.images} maps of {self.side}x{self.side}"


CONVOLUTIONS = (
    Convolution(64, 3, 80, 4),
    Convolution(128, 1, 56, 4),
    Convolution(128, 3, 56, 4, 128),
    Convolution(192, 3, 14, 16),
)


def main() -> None:
    """Print the table that was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    kinds = parser.add_subparsers(dest="kind", required=True)
    kinds.add_parser("kernels")
    for kind in ("calibration", "promise"):
        one = kinds.add_parser(kind)
        one.add_argument("model")
        one.add_argument("--weights", required=True)
        one.add_argument("--data", required=True)
        one.add_argument("--bits", default="8x8")
        one.add_argument("--num-samples", type=int)
        one.add_argument("--calibrator", default="repapq")
    options = parser.parse_args()
    if options.kind == "kernels":
        print("\n".join(kernels()))
    else:
        print(
            "\n".join({"calibration": count_operations, "promise": promise}[options.kind](options))
        )


def kernels() -> Iterator[str]:
    """Milliseconds of one operator, forward and backward."""
    yield "| what | " + " | ".join(f"{name}, {layout}" for name, layout, *_ in _kinds()) + " |"
    yield "|---" * (1 + len(list(_kinds()))) + "|"
    for one in CONVOLUTIONS:
        times = []
        for _, _, dtype, memory in _kinds():
            x = torch.randn(one.images, one.channels, one.side, one.side, dtype=dtype)
            w = torch.randn(
                one.channels, one.channels // one.groups, one.kernel, one.kernel, dtype=dtype
            )
            x = x.contiguous(memory_format=memory).requires_grad_()
            w = w.contiguous(memory_format=memory).requires_grad_()

            def step(x: torch.Tensor = x, w: torch.Tensor = w, one: Convolution = one) -> None:
                y = functional.conv2d(x, w, padding=one.kernel // 2, groups=one.groups)
                y.backward(torch.ones_like(y))

            times.append(f"{1e3 * seconds(step):.1f}")
        yield f"| {one} | {' | '.join(times)} |"


def _kinds() -> Iterator[tuple[str, str, torch.dtype, torch.memory_format]]:
    for name, dtype in (("FP32", torch.float32), ("bf16", torch.bfloat16)):
        yield name, "contiguous", dtype, torch.contiguous_format
        yield name, "channels last", dtype, torch.channels_last


@dataclass(frozen=True)
class Job:
    """A network, and what it is calibrated with."""

    model: QuantizedModel
    calibrator: Calibrator
    batches: Batches
    title: str


def open_job(options: argparse.Namespace) -> Job:
    """The calibration that was asked for."""
    weight_bits, activation_bits = map(int, options.bits.split("x"))
    recipe = load_recipe(
        options.model,
        {
            "weights": options.weights,
            "data": options.data,
            "calibrator": options.calibrator,
            "weight_bits": weight_bits,
            "activation_bits": activation_bits,
        },
    )
    loaded = load_model(
        recipe.model, recipe.weights, PreprocessOverrides(None, None, None), lambda *_: None
    )
    network = open_network(loaded, recipe)
    calibrator = create_calibrator(recipe.calibrator, Settings(recipe.seed, recipe.reconstruction))
    assert recipe.data is not None
    images = open_images(
        recipe.data,
        loaded.preprocess,
        limit=options.num_samples
        or calibrator.usual_num_samples(min(weight_bits, activation_bits)),
        seed=recipe.seed,
    )
    samples = PictureFeeds(images, network.card.inputs)
    batches = calibration_batches(samples, network.card.batch_size, choose_device(recipe))
    title = f"{options.model}, {options.bits}, {len(images)} images"
    return Job(network.quantized, calibrator, batches, title)


def count_operations(options: argparse.Namespace) -> Iterator[str]:
    """Operations of one calibration, its time, and the share of the peak that this is."""
    job = open_job(options)
    counted = copy.deepcopy(job.model)
    started = time.monotonic()
    job.calibrator.calibrate(job.model, job.batches)
    spent = time.monotonic() - started
    with FlopCounterMode(display=False) as counter:  # not at once: counting slows small operators
        job.calibrator.calibrate(counted, job.batches)
    done, peak = counter.get_total_flops() / 1e9, peak_gigaflops(torch.float32)
    half = peak_gigaflops(torch.bfloat16)
    yield "| calibration | giga-operations | seconds | a second | peak in FP32 | share | peak in bf16 |"
    yield "|---" * 7 + "|"
    yield (
        f"| {job.title} | {done:,.0f} | {spent:.0f} | {done / spent:.0f} "
        f"| {peak:.0f} | {100 * done / spent / peak:.0f} % | {half:.0f} |"
    )


def promise(options: argparse.Namespace) -> Iterator[str]:
    """Time that seemed to be left after some shares of the time, over the time that was left."""
    job = open_job(options)
    seen: list[tuple[float, float]] = []

    def progress(_: str, now: int, total: int) -> None:
        seen.append((time.monotonic() - started, now / total))

    started = time.monotonic()
    job.calibrator.calibrate(job.model, job.batches, progress)
    spent = time.monotonic() - started
    shares = (0.1, 0.2, 0.3, 0.5)
    yield "| run | seconds | " + " | ".join(f"after {share:.0%}" for share in shares) + " |"
    yield "|---" * (2 + len(shares)) + "|"
    found = []
    for share in shares:
        at, shown = next(one for one in seen if one[0] >= share * spent and one[1])
        found.append(f"{(at / shown - at) / (spent - at):.2f}")
    yield f"| {job.title} | {spent:.0f} | {' | '.join(found)} |"


def peak_gigaflops(dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product, in units of 1e9."""
    a, b = (torch.randn(SIDE, SIDE, dtype=dtype) for _ in range(2))
    return 2 * SIDE**3 / seconds(lambda: a @ b) / 1e9


def seconds(work: Callable[[], object]) -> float:
    """Median of some repeats."""
    times = []
    for _ in range(REPEATS):
        started = time.monotonic()
        work()
        times.append(time.monotonic() - started)
    return statistics.median(times)


if __name__ == "__main__":
    main()
