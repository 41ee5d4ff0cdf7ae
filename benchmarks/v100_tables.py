"""The form of the cost model on measured convolutions of a V100: which tile, which overlap."""

from __future__ import annotations

import lzma
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from reptrt.engines.data_sheet import V100

LINE = re.compile(r"\{Regular," + r",".join([r"(\d+)"] * 8) + r"\} ([\d.]+)")
SAMPLES = 4000
IMAGE_CHANNELS = 4
TILES = ((128, 64), (128, 128))
OVERLAPS = (1.0, 1.5, 3.0)
Search = Callable[[Callable[[np.ndarray], float], np.ndarray], np.ndarray]


def fit_tables(folder: Path, search: Search) -> None:
    """Print the error of each tile and overlap, its other constants fitted, on layers not fitted on."""
    for name, dtype, size in (("v100_fp16", "Half", 2), ("v100_int8", "Int8", 1)):
        rows = read_table(folder / f"{name}.txt.xz")
        for batch in (1, 32):
            chosen = rows[rows[:, 0] == batch][: 2 * SAMPLES]
            for tile in TILES:
                for overlap in OVERLAPS:
                    _print_row(f"{name} batch {batch}", chosen, dtype, size, tile, overlap, search)


def read_table(path: Path) -> np.ndarray:
    """Rows of batch, channels, height, width, outputs, kernel, stride, elementwise, milliseconds."""
    found = LINE.findall(lzma.decompress(path.read_bytes()).decode())
    rows = np.array(found, dtype=float)
    rows = rows[rows[:, 1] > IMAGE_CHANNELS]
    return np.random.default_rng(0).permutation(rows)


def _print_row(
    name: str, rows: np.ndarray, dtype: str, size: int, tile: tuple[int, int],
    overlap: float, search: Search,
) -> None:  # fmt: skip
    """Fit start, compute and memory on the first half; print the error on the second."""
    half = len(rows) // 2

    def predict(logs: np.ndarray, of: np.ndarray) -> np.ndarray:
        batch, channels, height, width, outputs, kernel, stride, added, _ = of.T
        pixels = batch * np.ceil(height / stride) * np.ceil(width / stride)
        depth = channels * kernel**2
        tiles = np.ceil(pixels / tile[0]) * np.ceil(outputs / tile[1])
        waves = np.ceil(tiles / V100.sms) * V100.sms
        start, compute, memory = np.exp(logs)
        c = 1e6 * waves * 2 * tile[0] * tile[1] * depth / (V100.peak(dtype) * compute)
        moved = batch * channels * height * width + pixels * outputs * (1 + added) + outputs * depth
        m = 1e6 * size * moved / (V100.bandwidth_gbs * 1e9 * memory)
        return np.asarray(start + (c**overlap + m**overlap) ** (1 / overlap))

    def error(logs: np.ndarray, of: np.ndarray) -> np.ndarray:
        return np.asarray(np.abs(np.log(predict(logs, of) / (1e3 * of[:, -1]))))

    logs = search(lambda x: float(error(x, rows[:half]).mean()), np.log([12.0, 0.7, 0.7]))
    unseen = rows[half:]
    order = np.random.default_rng(1).integers(0, len(unseen), (500, 40))
    sums = predict(logs, unseen)[order].sum(1) / (1e3 * unseen[:, -1][order].sum(1))
    start, compute, memory = np.exp(logs)
    print(
        f"{name} tile {tile[0]}x{tile[1]} overlap {overlap}: median error "
        f"{100 * np.median(np.abs(np.expm1(error(logs, unseen)))):.0f} %, sum of 40 layers "
        f"{100 * np.abs(sums - 1).mean():.0f} %; start {start:.1f} us, compute {compute:.2f}, "
        f"memory {memory:.2f}"
    )
