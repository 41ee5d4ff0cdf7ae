"""Histograms of a network's activations on disk: every baseline, at any bits, reads the same ones."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from reptrt.calibrators.histogram.observers import NUM_BINS, HistogramObserver
from reptrt.engines.foreign.border import reading, require_file


class HistogramFileError(ValueError):
    """The file holds no histograms of this network."""

    exit_code = 2


def save_observers(observers: Mapping[str, HistogramObserver], path: Path) -> None:
    """Write `observers` to `path`; not atomic, so give a temporary name."""
    seen = list(observers.values())
    bounds = [(one.amax, one.minimum, one.limit) for one in seen]
    tensors = {
        "counts": torch.stack([one.counts for one in seen]),
        "bounds": torch.tensor(bounds, dtype=torch.float64),
    }
    save_file(tensors, path, metadata={"names": json.dumps(list(observers))})


def load_observers(path: Path, names: Collection[str]) -> dict[str, HistogramObserver]:
    """What `save_observers` wrote of the quantizers `names`.

    Raises:
        HistogramFileError: damaged, or of other quantizers.
    """
    with reading(path, HistogramFileError, "holds no histograms; remove it, and calibrate again"):
        require_file(path, HistogramFileError)
        with safe_open(path, framework="pt") as file:
            stored = json.loads((file.metadata() or {})["names"])
            counts, bounds = file.get_tensor("counts"), file.get_tensor("bounds")
        if stored != list(names):
            raise ValueError("they are of another network")
        shapes = (counts.shape, bounds.shape, counts.dtype, bounds.dtype)
        if shapes != ((len(names), NUM_BINS), (len(names), 3), torch.float64, torch.float64):
            raise ValueError("they have another form")
        if not (counts.isfinite() & (counts >= 0)).all() or not bounds.isfinite().all():
            raise ValueError("they hold something else than counts")
    found: dict[str, HistogramObserver] = {}
    for name, own, row in zip(stored, counts, bounds.tolist(), strict=True):
        observer = found[name] = HistogramObserver()
        observer.amax, observer.minimum, observer.limit = row
        observer.counts = own.clone()
    return found
