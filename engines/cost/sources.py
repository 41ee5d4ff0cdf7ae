"""Kernels to be costed, from whatever the user has: a model, an engine's layer list, a finished run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from reptrt.engines.build.builder import BuildOptions, build_engine
from reptrt.engines.cost.estimate import CostError, require_shapes, scale_batch
from reptrt.engines.data_sheet import DataSheet
from reptrt.engines.foreign.border import read_bytes, reading
from reptrt.engines.foreign.graphs import require_small_tensors
from reptrt.engines.fusion_rules import predict_kernels
from reptrt.engines.inspection.kernel import Kernel
from reptrt.engines.inspection.kernel_record import read_kernel_entry
from reptrt.engines.inspection.kernels import LayerListError, parse_kernels
from reptrt.engines.inspection.traffic import has_work, measure_traffic
from reptrt.engines.partial import temporary_folder
from reptrt.engines.target import Target, load_backend

FUSION_FILE = "fusion.json"
MODEL_FILE = "model.trt.onnx"
_MOST_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Layers:
    """Kernels of an engine.

    Attributes:
        kernels: in order of execution.
        batch: that they are for.
        origin: who says so, in words.
        engine_bytes: size of the engine's file, None where nothing here builds it.
    """

    kernels: tuple[Kernel, ...]
    batch: int
    origin: str
    engine_bytes: int | None = None

    def at_batch(self, batch: int) -> Layers:
        """The same kernels, for another batch."""
        if batch == self.batch:
            return self
        kernels = scale_batch(self.kernels, batch / self.batch)
        return Layers(kernels, batch, self.origin, self.engine_bytes)


def read_layers(path: Path, target: Target | None, sheet: DataSheet) -> Layers:
    """Return the kernels that `path` stands for.

    Args:
        path: `.onnx`; the inspector's `graph.json`, or a TensorRT-RTX build log's "Layers:" message;
            `fusion.json`, or the folder of a run that has one.
        target: for which a model is compiled or predicted; None for classic TensorRT on `sheet`'s GPU.
        sheet: the GPU.

    Raises:
        CostError: another kind of file, or one that cannot be read.
        LayerListError, BuildError, UnpredictableModelError: what is in it makes no sense.
        MissingComponentError: a TensorRT-RTX target, and TensorRT-RTX is not here.
    """
    with reading(path, CostError, "cannot be predicted"):
        if path.is_dir():
            return _read_run(path, target, sheet)
        if not path.is_file():
            raise CostError(
                f"{path}: no such file; give a model.onnx, an engine's graph.json, or the folder of a run"
            )
        if path.suffix == ".onnx":
            require_small_tensors(path, batch=1)
            return read_model(path, target, sheet)
        return _with_shapes(path, _read_list(path))


def _with_shapes(path: Path, layers: Layers) -> Layers:
    """`layers`, if they can be costed; an error names `path`."""
    try:
        require_shapes(layers.kernels)
    except CostError as error:
        raise CostError(f"{path}: {error}") from error
    return layers


def read_model(path: Path, target: Target | None, sheet: DataSheet) -> Layers:
    """Return the kernels of a model at its own batch, 1 where that is open.

    TensorRT-RTX compiles it for a target of its own; for any other GPU fusion rules predict.

    Raises:
        CostError, BuildError, UnpredictableModelError, MissingComponentError: see `read_layers`.
    """
    if target is not None and target.backend == "onnxruntime":
        raise CostError(
            f"target '{target.name}': there is a model for GPUs only; `reptrt bench` times it"
        )
    if target is not None and target.backend == "tensorrt_rtx":
        trt = load_backend(target)
        options = BuildOptions(compute_capabilities=(sheet.compute_capability,))
        with temporary_folder() as folder:
            built = build_engine(path, Path(folder, "model.engine"), trt, options)
        kernels, origin = parse_kernels(built.layers), f"compiled by TensorRT-RTX {built.version}"
        size: int | None = built.size_bytes
    else:
        kernels = predict_kernels(path, compute_capability=sheet.compute_capability)
        size = None
        origin = "layers predicted by the fusion rules of classic TensorRT"
    require_shapes(kernels)
    return Layers(kernels, _batch_of(kernels), origin, size)


def _read_run(folder: Path, target: Target | None, sheet: DataSheet) -> Layers:
    """Kernels that the run built; of its model, where it was built for a range of batches."""
    fusion, model = folder / FUSION_FILE, folder / MODEL_FILE
    if not fusion.is_file():
        raise CostError(f"{folder}: no {FUSION_FILE} in it: `reptrt build` writes one")
    layers = _read_list(fusion)
    if measure_traffic(layers.kernels) is None and model.is_file():
        return read_model(model, target, sheet)
    return _with_shapes(fusion, layers)


def _read_list(path: Path) -> Layers:
    """Read graph.json, fusion.json or a log."""
    with reading(path, CostError, "no layer list"):
        text = read_bytes(path, _MOST_BYTES, CostError).decode("utf-8")
    try:
        kernels, origin = _parse(text)
    except LayerListError as error:
        raise LayerListError(f"{path}: {error}") from error
    return Layers(kernels, _batch_of(kernels), origin)


def _parse(text: str) -> tuple[tuple[Kernel, ...], str]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return parse_kernels(text), "layers of a built engine"
    if not isinstance(content, dict) or "fused_kernels" not in content:
        return parse_kernels(text), "layers of a built engine"
    entries = content["fused_kernels"]
    if not isinstance(entries, list) or not all(isinstance(one, Mapping) for one in entries):
        raise LayerListError("'fused_kernels' is no list of kernels")
    return tuple(read_kernel_entry(one) for one in entries), f"built with {content.get('backend')}"


def _batch_of(kernels: tuple[Kernel, ...]) -> int:
    """First side of what the first kernel reads."""
    for kernel in kernels:
        if has_work(kernel) and kernel.inputs and kernel.inputs[0].dims:
            return max(1, kernel.inputs[0].dims[0])
    return 1
