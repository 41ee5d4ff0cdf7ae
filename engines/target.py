"""Choose a build target, and load the module that builds for it.

A classic TensorRT engine only runs on the kind of GPU it was built on, so those targets are built
on the device. TensorRT-RTX compiles ahead of time for several GPUs and needs none to build.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
from collections.abc import Sequence
from types import ModuleType

from reptrt.engines.data_sheet import ComputeCapability
from reptrt.engines.device import find_gpu
from reptrt.engines.target_table import TARGETS, Backend, Target

__all__ = [
    "INSTALL_HINTS",
    "TARGETS",
    "Backend",
    "ComputeCapability",
    "MissingComponentError",
    "Target",
    "UnknownTargetError",
    "load_backend",
    "require_module",
    "resolve_target",
]

_AUTO = "auto"
_OLDEST = (10, 3)
INSTALL_HINTS: dict[Backend, str] = {
    "tensorrt": "pip install 'reptrt[tensorrt]' (on a Jetson, JetPack brings it), pack a kit that "
    'builds the engine on its device (`reptrt kit`), or choose `target="tensorrt-rtx"`',
    "tensorrt_rtx": "pip install 'tensorrt-rtx>=1.7,<1.8' (Linux x86-64 or Windows only)",
    "onnxruntime": "pip install 'onnxruntime>=1.22'",
}


class UnknownTargetError(ValueError):
    """The name is not in `TARGETS`."""

    exit_code = 2


class MissingComponentError(RuntimeError):
    """A module or a GPU that the work needs is absent here."""

    exit_code = 4


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
    raise UnknownTargetError(f"unknown target '{name}'{_hint(name, legal)}")


def load_backend(target: Target) -> ModuleType:
    """Import the module of `target`, after checking that this machine can build for it.

    That is `tensorrt`, `tensorrt_rtx`, or, for the target `cpu`, `onnxruntime`.

    Raises:
        MissingComponentError: the module is not installed or too old, or a classic TensorRT target
            finds no GPU, or not its GPU.
    """
    if target.backend == "tensorrt":
        _require_gpu(target)  # before TensorRT, which is of no use without it
    backend = require_module(target.backend, INSTALL_HINTS[target.backend])
    if target.backend == "tensorrt":
        _require_version(backend)
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


def _hint(name: str, legal: Sequence[str]) -> str:
    """Return the nearest legal names, or else all of them; `t4` is near `server-t4`."""
    part = name.lower()
    nearest = [other for other in legal if len(part) > 1 and part in other]
    nearest = nearest or difflib.get_close_matches(part, legal, n=3)
    if nearest:
        return f"; did you mean {' or '.join(map(repr, nearest[:3]))}? `reptrt targets` lists all"
    return f"; legal: {', '.join(legal)}"


def _require_version(trt: ModuleType) -> None:
    major, minor = (int(part) for part in trt.__version__.split(".")[:2])
    if (major, minor) < _OLDEST:
        raise MissingComponentError(
            f"TensorRT {trt.__version__} is too old for strongly typed INT8 graphs: 10.3 or newer "
            "is needed (JetPack 6 has it)"
        )


def _require_gpu(target: Target) -> None:
    gpu = find_gpu()
    if gpu is None:
        raise MissingComponentError(
            f"target '{target.name}' builds on its GPU and this machine has none: run this "
            "there, pack a kit that builds the engine there (`reptrt kit`), or choose "
            '`target="tensorrt-rtx"`'
        )
    if target.compute_capabilities and gpu.compute_capability not in target.compute_capabilities:
        wanted = " or ".join(f"{major}.{minor}" for major, minor in target.compute_capabilities)
        raise MissingComponentError(
            f"target '{target.name}' needs a GPU of compute capability {wanted}, and {gpu.name} "
            f"has {gpu.compute_capability[0]}.{gpu.compute_capability[1]}: build on the device, pack a kit "
            'that does (`reptrt kit`), or choose `target="tensorrt"` for this GPU'
        )
