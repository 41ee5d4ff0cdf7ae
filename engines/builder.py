"""Build an engine from a typed ONNX file: one builder for TensorRT 10, 11 and TensorRT-RTX.

The TensorRT module is passed in (`engines.target.load_backend`). Precision lives in the ONNX graph:
the network is strongly typed and no precision flag is ever set, which is what TensorRT 11 asks for
and TensorRT 10 allows.
"""

from __future__ import annotations

import logging
import re
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from engines.artifacts import replace_when_done
from engines.callbacks import (
    BuildLog,
    BuildWatch,
    Progress,
    create_logger,
    create_progress_monitor,
    deferred_interrupt,
)
from engines.target import Backend, ComputeCapability

logger = logging.getLogger(__name__)

_DYNAMIC = -1
_NOISE = ("Invalid Node - ", "Error Code 1: Cuda Runtime")


class BuildError(RuntimeError):
    """The ONNX file, the options or TensorRT itself stops the build."""

    exit_code = 2


@dataclass(frozen=True)
class BuildOptions:
    """How to build.

    Attributes:
        compute_capabilities: GPUs that TensorRT-RTX compiles for, as (major, minor); empty means its
            own default. Classic TensorRT builds for the GPU it runs on and ignores them.
        batch: smallest, usual and largest batch of an input whose first dimension is dynamic.
        workspace_bytes: most GPU memory a kernel may use as scratch; None leaves it to TensorRT.
        optimization_level: 0 (fast build) to 5 (fast engine); None is TensorRT's own default, 3.
        timing_cache: file that keeps kernel timings between builds (classic TensorRT only).
    """

    compute_capabilities: tuple[ComputeCapability, ...] = ()
    batch: tuple[int, int, int] = (1, 1, 1)
    workspace_bytes: int | None = None
    optimization_level: int | None = None
    timing_cache: Path | None = None


@dataclass(frozen=True)
class BuildResult:
    """A built engine; `layers` is the raw text that `engines.fusion.parse_kernels` reads."""

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
    builder = trt.Builder(trt_logger)
    network = builder.create_network(network_flags(trt))
    parser = trt.OnnxParser(network, trt_logger)
    if not parser.parse_from_file(str(onnx_path)):
        raise BuildError(parse_failure(onnx_path, parser))
    config = _create_config(trt, builder, network, options)
    monitor = create_progress_monitor(trt, watch)  # must outlive the build
    config.progress_monitor = monitor
    with deferred_interrupt(watch):
        serialized = builder.build_serialized_network(network, config)
    watch.check()
    if serialized is None:
        raise BuildError(f"{onnx_path}: TensorRT cannot build it: {_clean(log.errors)}")
    if options.timing_cache is not None and not is_rtx(trt):
        _write(options.timing_cache, config.get_timing_cache().serialize())
    _write(engine_path, serialized)
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
    error = parser.get_error(0)
    reason = _clean(error.desc().splitlines())
    if not error.node_operator():
        return f"{onnx_path}: not a readable ONNX file: {reason}"
    return f"{onnx_path}: TensorRT refuses {error.node_operator()} '{error.node_name()}': {reason}"


def _create_config(trt: ModuleType, builder: Any, network: Any, options: BuildOptions) -> Any:
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if is_rtx(trt):
        _set_compute_capabilities(trt, config, options.compute_capabilities)
    elif options.timing_cache is not None:
        _load_timing_cache(config, options.timing_cache)
    _add_profile(builder, network, config, options.batch)
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


def _load_timing_cache(config: Any, path: Path) -> None:
    cache = config.create_timing_cache(path.read_bytes() if path.exists() else b"")
    if not config.set_timing_cache(cache, ignore_mismatch=False):
        logger.warning("%s is of another GPU or TensorRT: starting an empty timing cache", path)
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)


def _add_profile(builder: Any, network: Any, config: Any, batch: tuple[int, int, int]) -> None:
    dynamic = {}
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        dimensions = tuple(tensor.shape)
        if _DYNAMIC in dimensions[1:]:
            raise BuildError(
                f"input '{tensor.name}' has dynamic dimensions {dimensions}; only the first, the "
                "batch, may be dynamic: export the others with a fixed size"
            )
        if dimensions[:1] == (_DYNAMIC,):
            dynamic[tensor.name] = dimensions[1:]
    if not dynamic:
        return
    if not 1 <= batch[0] <= batch[1] <= batch[2]:
        raise BuildError(f"batch {batch} is not 1 <= smallest <= usual <= largest")
    profile = builder.create_optimization_profile()
    for name, rest in dynamic.items():
        profile.set_shape(name, *((size, *rest) for size in batch))
    config.add_optimization_profile(profile)


def _inspect(trt: ModuleType, trt_logger: Any, serialized: Any) -> str:
    """Return the engine inspector's JSON; it needs the GPU that classic TensorRT built on."""
    engine = trt.Runtime(trt_logger).deserialize_cuda_engine(serialized)
    if engine is None:
        raise BuildError("TensorRT cannot load the engine that it has just built")
    information = engine.create_engine_inspector().get_engine_information(
        trt.LayerInformationFormat.JSON
    )
    return str(information)


def _clean(lines: list[str]) -> str:
    """Return the first message worth reading, without TensorRT's source positions."""
    useful = [line for line in lines if not any(noise in line for noise in _NOISE)]
    text = (useful or lines or ["no reason given"])[0]
    text = re.sub(r"^.*?Error Code \d+: ", "", text)
    text = re.sub(r"\s+In \w+ at \S+:\d+", "", text)
    text = re.sub(r"^Assertion failed: .*?\): ", "", text)
    return " ".join(text.split())


def _write(path: Path, data: Any) -> None:
    """Write bytes or a TensorRT host buffer, whole or not at all."""
    with replace_when_done(path) as temporary:
        temporary.write_bytes(data)
