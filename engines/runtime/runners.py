"""Run a model: ONNX Runtime on the CPU, or an engine on the GPU.

Both are context managers with the same `infer(feed_dict) -> outputs`, as in Polygraphy, which build
kits do without; `reptrt.engines.runtime.polygraphy_runner` makes Polygraphy's runners of them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from reptrt.engines.device import cpu_name, find_gpu
from reptrt.engines.foreign.text import one_line
from reptrt.engines.processors import available_processors
from reptrt.engines.runtime.cuda_stream import open_stream
from reptrt.engines.runtime.engine_context import EngineExecution, InferenceTime
from reptrt.engines.target import INSTALL_HINTS, Backend, MissingComponentError, require_module
from reptrt.engines.tensor_spec import TensorSpec

Array = npt.NDArray[Any]


class ModelFileError(ValueError):
    """The file cannot be loaded by the runner it was given to."""

    exit_code = 2


class Runner(Protocol):
    """A loaded model; use it as a context manager.

    `backend` and `device` say where it runs, for reports: "onnxruntime 1.22", "AMD EPYC 7B13".
    """

    @property
    def name(self) -> str:
        """Short label for tables."""

    @property
    def backend(self) -> str:
        """Library and version."""

    @property
    def device(self) -> str:
        """Processor or GPU name."""

    @property
    def input_metadata(self) -> dict[str, TensorSpec]:
        """Inputs by name; only inside the context."""

    def __enter__(self) -> Runner:
        """Load the model."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Free it."""

    def infer(self, feed_dict: Mapping[str, Array]) -> dict[str, Array]:
        """Return every output by name."""


class OnnxRuntimeRunner:
    """An ONNX file on the CPU.

    `optimize=False` turns graph optimizations off: each Q and DQ then computes exactly what ONNX
    says, which is the reference that an export is checked against. `num_threads` defaults to the
    processors this process may use. `seconds_per_run` ends a run that takes longer, at its next
    operator: a file of others may hold a loop without end.
    """

    def __init__(
        self,
        path: Path,
        optimize: bool = True,
        num_threads: int | None = None,
        name: str | None = None,
        seconds_per_run: float | None = None,
    ) -> None:
        self.path = path
        self.name = name or path.name
        self._seconds_per_run = seconds_per_run
        self._optimize = optimize
        self._num_threads = num_threads
        self._session: Any = None

    def copy(self, num_threads: int) -> OnnxRuntimeRunner:
        """A runner of the same file for another process, not opened yet."""
        return OnnxRuntimeRunner(
            self.path, self._optimize, num_threads, self.name, self._seconds_per_run
        )

    @property
    def backend(self) -> str:
        """Library and version."""
        return f"onnxruntime {_onnxruntime().__version__} CPU"

    @property
    def device(self) -> str:
        """Processor name."""
        return cpu_name()

    @property
    def input_metadata(self) -> dict[str, TensorSpec]:
        """Inputs by name."""
        return {
            tensor.name: TensorSpec(_shape(tensor.shape), _ort_dtype(tensor.type))
            for tensor in self._session.get_inputs()
        }

    def __enter__(self) -> OnnxRuntimeRunner:
        """Load the file.

        Raises:
            ModelFileError: ONNX Runtime does not accept it.
        """
        self._session = _session(self.path, self._optimize, self._num_threads)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Free the session."""
        self._session = None

    def infer(self, feed_dict: Mapping[str, Array]) -> dict[str, Array]:
        """Return every output by name."""
        names = [output.name for output in self._session.get_outputs()]
        with self._limited() as options:
            values = self._session.run(names, dict(feed_dict), options)
        return dict(zip(names, values, strict=True))

    @contextmanager
    def _limited(self) -> Iterator[Any]:
        """Options of one run, which is told to end when its time is over."""
        if self._seconds_per_run is None:
            yield None
            return
        options = _onnxruntime().RunOptions()
        timer = threading.Timer(self._seconds_per_run, setattr, (options, "terminate", True))
        timer.daemon = True
        timer.start()
        try:
            yield options
        finally:
            timer.cancel()


class TensorRTRunner:
    """An engine on the GPU; `time_inference` reads the GPU's own clock.

    `trusted` lets a version-compatible engine run the code it carries: only for files made here.
    """

    def __init__(
        self,
        path: Path,
        backend: Backend = "tensorrt",
        name: str | None = None,
        trusted: bool = False,
    ) -> None:
        self.path = path
        self.name = name or path.name
        self._backend = backend
        self._trusted = trusted
        self._execution: EngineExecution | None = None

    @property
    def backend(self) -> str:
        """Library and version."""
        module = require_module(self._backend, INSTALL_HINTS[self._backend])
        return f"{self._backend} {module.__version__}"

    @property
    def device(self) -> str:
        """GPU name."""
        gpu = find_gpu()
        return gpu.name if gpu else "no GPU"

    @property
    def input_metadata(self) -> dict[str, TensorSpec]:
        """Inputs by name."""
        return {
            tensor.name: TensorSpec(tensor.shape, tensor.dtype)
            for tensor in self.execution.tensors
            if tensor.is_input
        }

    @property
    def execution(self) -> EngineExecution:
        """The loaded engine; only inside the context."""
        if self._execution is None:
            raise RuntimeError(f"{self.name}: use the runner as a context manager")
        return self._execution

    def __enter__(self) -> TensorRTRunner:
        """Load the engine.

        Raises:
            MissingComponentError: no GPU here, or TensorRT or a CUDA library is missing.
            EngineError: the file is no engine, or one of another GPU or TensorRT.
        """
        _require_gpu(self.path)
        trt = require_module(self._backend, INSTALL_HINTS[self._backend])
        stream = open_stream()
        try:
            self._execution = EngineExecution(self.path, trt, stream, self._trusted)
        except BaseException:
            stream.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Free the engine."""
        execution, self._execution = self._execution, None
        if execution is not None:
            execution.close()

    def infer(self, feed_dict: Mapping[str, Array]) -> dict[str, Array]:
        """Return every output by name, in arrays of its own."""
        return self.execution.infer(feed_dict)

    def time_inference(self, feed_dict: Mapping[str, Array]) -> InferenceTime:
        """Run once; return what CUDA events say, with copies and without."""
        return self.execution.time(feed_dict)


def _require_gpu(path: Path) -> None:
    if find_gpu() is None:
        raise MissingComponentError(
            f"{path}: running an engine needs an NVIDIA GPU and its driver, and this machine has "
            "none: validate the ONNX file in ONNX Runtime, or run the engine on its target"
        )


def save_optimized(path: Path, optimized: Path) -> None:
    """Write the graph that ONNX Runtime makes of the file at `path` for this processor.

    Raises:
        ModelFileError: ONNX Runtime does not load it.
    """
    _session(path, True, None, optimized)


def _session(
    path: Path, optimize: bool, num_threads: int | None, optimized: Path | None = None
) -> Any:
    onnxruntime = _onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = (
        4  # its errors are raised too; printed, names of the file reach the terminal
    )
    options.intra_op_num_threads = num_threads or available_processors()
    # Else an idle session's threads spin on the processors of the one that is timed by turns with it.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    level = "ORT_ENABLE_ALL" if optimize else "ORT_DISABLE_ALL"
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    try:
        return onnxruntime.InferenceSession(
            str(path),
            options,
            providers=["CPUExecutionProvider"],
            enable_fallback=False,  # to the same provider; it prints what failed
        )
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        raise ModelFileError(f"{path}: ONNX Runtime does not load it: {one_line(error)}") from error


def _onnxruntime() -> Any:
    return require_module("onnxruntime", "pip install 'onnxruntime>=1.22'")


def _shape(dimensions: Any) -> tuple[int, ...]:
    return tuple(size if isinstance(size, int) else -1 for size in dimensions)


def _ort_dtype(text: str) -> np.dtype[Any]:
    """Translate ONNX Runtime's "tensor(float16)"."""
    names = {"float": "float32", "double": "float64"}
    inner = text.removeprefix("tensor(").removesuffix(")")
    return np.dtype(names.get(inner, inner))
