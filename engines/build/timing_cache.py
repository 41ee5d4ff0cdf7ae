"""Kernel timings kept between builds: one file per GPU and TensorRT version, shared by processes.

Timings are valid on the GPU and the TensorRT that measured them, so both are in the file's name.
Before it is written, what other processes added meanwhile is merged in, under a lock; it appears
whole or not at all. Timings only save time: where the file cannot be used or kept, the build goes
on and a warning says why. TensorRT does not promise the same engine from the same timings
(https://github.com/NVIDIA/TensorRT/issues/4798).
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

from reptrt.engines.artifacts import cache_folder, replace_when_done
from reptrt.engines.device import Gpu
from reptrt.engines.file_lock import hold_lock

logger = logging.getLogger(__name__)


def default_folder() -> Path:
    """Return `reptrt/timings` in the user's cache folder."""
    return cache_folder() / "timings"


def cache_file(folder: Path, gpu: Gpu, version: str) -> Path:
    """Return the file for `gpu` and TensorRT `version` in `folder`."""
    name = re.sub(r"[^a-z0-9]+", "-", gpu.name.lower()).strip("-")
    major, minor = gpu.compute_capability
    return folder / f"{name}-sm{major}{minor}-tensorrt-{version}.cache"


def attach_timings(config: Any, path: Path) -> Any:
    """Give the build of `config` the timings in `path`, or none where they do not fit.

    Returns:
        The cache, which must outlive the build.
    """
    cache = config.create_timing_cache(_read(path))
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        logger.warning("%s is of another GPU or TensorRT: starting without timings", path)
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, ignore_mismatch=False)
    return cache


def keep_timings(config: Any, path: Path) -> None:
    """Add the timings that the build of `config` has measured to those in `path`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with hold_lock(path.with_name(f".{path.name}.lock")):
            cache = config.get_timing_cache()
            stored = _read(path)
            others = config.create_timing_cache(stored) if stored else None
            if others is not None and not cache.combine(others, ignore_mismatch=False):
                logger.warning("%s: unusable, replaced by the timings of this build", path)
            with replace_when_done(path) as temporary:
                temporary.write_bytes(cache.serialize())
    except OSError as error:
        logger.warning("%s: timings are not kept: %s", path, error.strerror or error)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        logger.warning("%s: timings are not used: %s", path, error.strerror or error)
        return b""
