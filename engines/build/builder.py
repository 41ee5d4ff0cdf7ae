"""Build an engine from a typed ONNX file: one builder for TensorRT 10, 11 and TensorRT-RTX.

The TensorRT module is passed in (`reptrt.engines.target.load_backend`). Precision lives in the ONNX graph:
the network is strongly typed and no precision flag is ever set, which is what TensorRT 11 asks for
and TensorRT 10 allows.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from reptrt.engines.artifacts import replace_when_done
from reptrt.engines.build.callbacks import (
    BuildLog,
    BuildWatch,
    Progress,
    create_logger,
    create_progress_monitor,
    deferred_interrupt,
)
from reptrt.engines.build.tensorrt_errors import first_reason
from reptrt.engines.build.timing_cache import attach_timings, cache_file, keep_timings
from reptrt.engines.device import find_gpu
from reptrt.engines.target import Backend, ComputeCapability

Shape = tuple[int, ...]
ShapeRange = tuple[Shape, Shape, Shape]
"""Smallest, usual and largest; kernels are chosen for the usual one."""

_DYNAMIC = -1


class BuildError(RuntimeError):
    """The ONNX file, the options or TensorRT itself stops the build."""

    exit_code = 2


@dataclass(frozen=True)
class BuildOptions:
    """How to build.

    Attributes:
        compute_capabilities: GPUs that TensorRT-RTX compiles for, as (major, minor); empty means its
            own default. Classic TensorRT builds for the GPU it runs on and ignores them.
        batch: smallest, usual and largest batch of an input whose first dimension alone is dynamic.
        shapes: the same for whole inputs by name, for those with other dynamic dimensions.
        workspace_bytes: most GPU memory a kernel may use as scratch; None leaves it to TensorRT.
        optimization_level: 0 (fast build) to 5 (fast engine); None is TensorRT's own default, 3.
        timing_cache: folder that keeps kernel timings between builds, one file per GPU and TensorRT
            version; None keeps none. TensorRT-RTX, which times nothing when it builds, ignores it.
        version_compatible: the engine also loads in later TensorRT (10 in 11 too, never in an earlier
            one). It carries the runtime that it needs, so it is larger, can be slower, and must be
            loaded as trusted: "Engine Compatibility", TensorRT 11.1 documentation.
        hardware_compatible: the engine also runs on other GPUs of Ampere or newer. Kernels get 48 KiB
            of shared memory, fewer of them can be chosen and some fusions are lost, so it can be
            slower: HardwareCompatibilityLevel.AMPERE_PLUS. Not on a Jetson.
    """

    compute_capabilities: tuple[ComputeCapability, ...] = ()
    batch: tuple[int, int, int] = (1, 1, 1)
    shapes: Mapping[str, ShapeRange] = field(default_factory=dict)
    workspace_bytes: int | None = None
    optimization_level: int | None = None
    timing_cache: Path | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False


@dataclass(frozen=True)
class BuildResult:
    """A built engine; `layers` is the raw text that `reptrt.engines.inspection.fusion.parse_kernels` reads."""

    engine_path: Path
    backend: Backend
    version: str
    seconds: float
    size_bytes: int
    layers: str
    warnings: tuple[str, ...]


def build_engine(
    onnx_path: Path,
    engine_path: Path,
    trt: ModuleType,
    options: BuildOptions | None = None,
    progress: Progress | None = None,
) -> BuildResult:
    """Build `onnx_path` with the module `trt` and write `engine_path` atomically.

    Raises:
        BuildError: the file does not parse, the options do not fit it, or TensorRT gives up.
        KeyboardInterrupt: Ctrl-C; nothing is written.
    """
    options = options or BuildOptions()
    log, watch = BuildLog(), BuildWatch(progress)
    started = time.monotonic()
    trt_logger = create_logger(trt, log)
    builder = _create_builder(trt, trt_logger, log)
    network = builder.create_network(network_flags(trt))
    parser = trt.OnnxParser(network, trt_logger)
    if not parser.parse_from_file(str(onnx_path)):
        raise BuildError(parse_failure(onnx_path, parser))
    config = _create_config(trt, builder, network, options)
    timings = _timings_file(trt, options)
    # Both must outlive the build.
    cache = None if timings is None else attach_timings(config, timings)
    monitor = create_progress_monitor(trt, watch)
    config.progress_monitor = monitor
    with deferred_interrupt(watch):
        serialized = builder.build_serialized_network(network, config)
    watch.check()
    if serialized is None:
        raise BuildError(f"{onnx_path}: TensorRT cannot build it: {first_reason(log.errors)}")
    if timings is not None and cache is not None:
        keep_timings(config, timings)
    with replace_when_done(engine_path) as temporary:
        temporary.write_bytes(serialized)
    layers = log.layers if is_rtx(trt) else _inspect(trt, trt_logger, serialized)
    return BuildResult(
        engine_path=engine_path,
        backend="tensorrt_rtx" if is_rtx(trt) else "tensorrt",
        version=trt.__version__,
        seconds=time.monotonic() - started,
        size_bytes=engine_path.stat().st_size,
        layers=layers,
        warnings=tuple(log.warnings),
    )


def with_batch(
    shapes: Mapping[str, ShapeRange], batch: tuple[int, int, int]
) -> dict[str, ShapeRange]:
    """`shapes` for other batches, which their first sides are."""
    return {
        name: ((batch[0], *low[1:]), (batch[1], *usual[1:]), (batch[2], *high[1:]))
        for name, (low, usual, high) in shapes.items()
    }


def is_rtx(trt: ModuleType) -> bool:
    """Return whether `trt` is TensorRT-RTX; the two modules share their API."""
    return trt.__name__ == "tensorrt_rtx"


def network_flags(trt: ModuleType) -> int:
    """Return the creation flags of a strongly typed network: TensorRT 11 and RTX know no other."""
    if is_rtx(trt) or int(trt.__version__.split(".")[0]) >= 11:
        return 0
    return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def parse_failure(onnx_path: Path, parser: Any) -> str:
    """Return one line that says which node the ONNX parser refused and why."""
    if parser.num_errors == 0:
        return f"{onnx_path}: not a readable ONNX file"
    parser_error = parser.get_error(0)
    reason = first_reason(str(parser_error.desc()).splitlines())
    operator = parser_error.node_operator()
    if not operator:
        return f"{onnx_path}: not a readable ONNX file: {reason}"
    return f"{onnx_path}: TensorRT refuses {operator} '{parser_error.node_name()}': {reason}"


def _create_builder(trt: ModuleType, trt_logger: Any, log: BuildLog) -> Any:
    try:
        return trt.Builder(trt_logger)
    except TypeError as error:  # what the bindings make of a null pointer
        raise BuildError(f"TensorRT does not start: {first_reason(log.errors)}") from error


def _create_config(trt: ModuleType, builder: Any, network: Any, options: BuildOptions) -> Any:
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if is_rtx(trt):
        _set_compute_capabilities(trt, config, options.compute_capabilities)
    _set_compatibility(trt, config, options)
    ranges = {
        network_input.name: _shape_range(network_input.name, tuple(network_input.shape), options)
        for network_input in map(network.get_input, range(network.num_inputs))
        if _DYNAMIC in tuple(network_input.shape)
    }
    if unknown := options.shapes.keys() - ranges.keys():
        raise BuildError(f"no dynamic input is called {', '.join(sorted(unknown))}")
    if ranges:
        profile = builder.create_optimization_profile()
        for name, (low, usual, high) in ranges.items():
            profile.set_shape(name, min=low, opt=usual, max=high)
        config.add_optimization_profile(profile)
    return config


def _set_compute_capabilities(
    trt: ModuleType, config: Any, capabilities: tuple[ComputeCapability, ...]
) -> None:
    legal = [name for name in dir(trt.ComputeCapability) if re.fullmatch(r"SM\d+", name)]
    names = [f"SM{major}{minor}" for major, minor in capabilities]
    unknown = [name for name in names if name not in legal]
    if unknown:
        raise BuildError(
            f"TensorRT-RTX {trt.__version__} does not compile for {', '.join(unknown)}; "
            f"legal: {', '.join(legal)}"
        )
    config.num_compute_capabilities = len(names)
    for index, name in enumerate(names):
        config.set_compute_capability(getattr(trt.ComputeCapability, name), index)


def _set_compatibility(trt: ModuleType, config: Any, options: BuildOptions) -> None:
    if not (options.version_compatible or options.hardware_compatible):
        return
    if is_rtx(trt):
        raise BuildError(
            "TensorRT-RTX engines know neither `version_compatible` nor `hardware_compatible`: "
            "they are compiled for all GPUs of their target as it is"
        )
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS


def _shape_range(name: str, shape: Shape, options: BuildOptions) -> ShapeRange:
    """Return the sizes for which an input of the dynamic `shape` is built.

    Raises:
        BuildError: there is no such range for it, or it does not fit `shape`.
    """
    if name in options.shapes:
        chosen = options.shapes[name]
    elif _DYNAMIC in shape[1:]:
        raise BuildError(
            f"input '{name}' has dynamic dimensions {shape}, and the batch alone may be left open: "
            "export it with a fixed size, or give its sizes in BuildOptions.shapes"
        )
    else:
        low, usual, high = ((size, *shape[1:]) for size in options.batch)
        chosen = low, usual, high
    fits = all(len(one) == len(shape) for one in chosen) and all(
        1 <= low <= usual <= high and fixed in (_DYNAMIC, low, high)
        for fixed, low, usual, high in zip(shape, *chosen, strict=True)
    )
    if not fits:
        raise BuildError(
            f"input '{name}' {shape}: {' , '.join(map(str, chosen))} is not 1 <= smallest <= usual "
            "<= largest in every dimension, fixed ones as they are"
        )
    return chosen


def _timings_file(trt: ModuleType, options: BuildOptions) -> Path | None:
    """Return where timings of this GPU and TensorRT are kept, None where they are not."""
    gpu = None if is_rtx(trt) or options.timing_cache is None else find_gpu()
    if gpu is None or options.timing_cache is None:
        return None
    return cache_file(options.timing_cache, gpu, trt.__version__)


def _inspect(trt: ModuleType, trt_logger: Any, serialized: Any) -> str:
    """Return the engine inspector's JSON; it needs the GPU that classic TensorRT built on."""
    runtime = trt.Runtime(trt_logger)
    runtime.engine_host_code_allowed = True  # it was built a moment ago, here
    engine = runtime.deserialize_cuda_engine(serialized)
    if engine is None:
        raise BuildError("TensorRT cannot load the engine that it has just built")
    inspector = engine.create_engine_inspector()
    return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
