"""Build targets: which TensorRT makes the engine, and for which GPUs.

A classic TensorRT engine only runs on the kind of GPU it was built on, so those targets are built
on the device. TensorRT-RTX compiles ahead of time for several GPUs and needs none to build.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
from dataclasses import dataclass
from types import ModuleType
from typing import Literal

from engines.device import find_gpu

Backend = Literal["tensorrt", "tensorrt_rtx"]
ComputeCapability = tuple[int, int]

_AUTO = "auto"
INSTALL_HINTS: dict[Backend, str] = {
    "tensorrt": "pip install 'reptrt[tensorrt]' (on a Jetson, JetPack brings it), "
    "or choose --target tensorrt-rtx",
    "tensorrt_rtx": "pip install 'tensorrt-rtx>=1.7,<1.8' (Linux x86-64 or Windows only)",
}


class UnknownTargetError(ValueError):
    """The name is not in `TARGETS`."""

    exit_code = 2


class MissingComponentError(RuntimeError):
    """A module or a GPU that the work needs is absent here."""

    exit_code = 4


@dataclass(frozen=True)
class Target:
    """Where an engine will run.

    `compute_capabilities` are (major, minor) pairs. TensorRT-RTX compiles for all of them; a classic
    TensorRT target is built on a GPU that has one of them, or on any GPU where the tuple is empty.
    """

    name: str
    backend: Backend
    compute_capabilities: tuple[ComputeCapability, ...]
    description: str


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("tensorrt", "tensorrt", (), "TensorRT 10 or 11, for the GPU of this machine"),
        Target(
            "tensorrt-rtx",
            "tensorrt_rtx",
            ((8, 0), (8, 6), (8, 9), (12, 0)),
            "TensorRT-RTX, Ampere to Blackwell; builds without a GPU",
        ),
        Target("server-t4", "tensorrt", ((7, 5),), "NVIDIA T4; built on the server"),
        Target("server-a100", "tensorrt", ((8, 0),), "NVIDIA A100; built on the server"),
        Target("server-l4", "tensorrt", ((8, 9),), "NVIDIA L4; built on the server"),
        Target("jetson-orin", "tensorrt", ((8, 7),), "Jetson AGX Orin; built on the device"),
        Target(
            "jetson-orin-nx", "tensorrt", ((8, 7),), "Jetson Orin NX, Nano; built on the device"
        ),
    )
}


def resolve_target(name: str) -> Target:
    """Return the target called `name`; `auto` is TensorRT where it and a GPU are, else RTX.

    Raises:
        UnknownTargetError: `name` is neither `auto` nor in `TARGETS`.
    """
    if name == _AUTO:
        classic_works = importlib.util.find_spec("tensorrt") is not None and find_gpu() is not None
        return TARGETS["tensorrt" if classic_works else "tensorrt-rtx"]
    if name in TARGETS:
        return TARGETS[name]
    legal = [_AUTO, *TARGETS]
    nearest = difflib.get_close_matches(name, legal, n=1)
    hint = f"; did you mean '{nearest[0]}'?" if nearest else ""
    raise UnknownTargetError(f"unknown target '{name}'{hint} (legal: {', '.join(legal)})")


def load_backend(target: Target) -> ModuleType:
    """Import the TensorRT of `target`, after checking that this machine can build for it.

    Raises:
        MissingComponentError: the module is not installed, or a classic TensorRT target finds no
            GPU, or not its GPU.
    """
    backend = require_module(target.backend, INSTALL_HINTS[target.backend])
    if target.backend == "tensorrt":
        _require_gpu(target)
    return backend


def require_module(name: str, install: str) -> ModuleType:
    """Import `name`, or say with `install` how to get it.

    Raises:
        MissingComponentError: the import fails.
    """
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:
        raise MissingComponentError(
            f"the Python module '{name}' does not import here ({error}): {install}"
        ) from error


def _require_gpu(target: Target) -> None:
    gpu = find_gpu()
    if gpu is None:
        raise MissingComponentError(
            f"target '{target.name}' builds on its GPU and this machine has none: run this "
            "there, or choose --target tensorrt-rtx"
        )
    if target.compute_capabilities and gpu.compute_capability not in target.compute_capabilities:
        wanted = " or ".join(f"{major}.{minor}" for major, minor in target.compute_capabilities)
        raise MissingComponentError(
            f"target '{target.name}' needs a GPU of compute capability {wanted}, and {gpu.name} "
            f"has {gpu.compute_capability[0]}.{gpu.compute_capability[1]}: build on the device, or "
            "choose --target tensorrt for this GPU"
        )
