"""Run surgery on a file: load, rewrite, check, write atomically."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx
import onnx_graphsurgeon as gs
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # ships no stubs
from onnx_graphsurgeon.logger import G_LOGGER

from reptrt.engines.artifacts import replace_when_done
from reptrt.engines.foreign.border import reading
from reptrt.engines.foreign.graphs import (
    GraphError,
    require_data_beside,
    require_small_functions,
    sort_nodes,
    write_for_checker,
)
from reptrt.engines.foreign.opset import OpsetError, raise_for_pairs
from reptrt.engines.foreign.text import one_line
from reptrt.engines.form import Form, write_form
from reptrt.engines.surgery.base import Pass, SurgeryError, run_passes

# What one protobuf file can hold; onnx.checker and shape inference need the model as one.
MAX_BYTES = 2**31 - 1


def clean_file(
    source: Path, target: Path, passes: Sequence[Pass], form: Form | None = None
) -> dict[str, int]:
    """Apply `passes` to the model in `source`, write it to `target`, return sites per pass.

    The two paths may be the same. Weights of `source` may lie beside it as external data; `target`
    holds everything, and names `form` in its metadata; None leaves what is there.

    Raises:
        SurgeryError: `source` is missing, no valid ONNX model or over 2 GB, or a pass refuses it.
    """
    with reading(source, SurgeryError, "cannot be repaired"):
        return _clean(source, target, passes, form)


def _clean(source: Path, target: Path, passes: Sequence[Pass], form: Form | None) -> dict[str, int]:
    model = _load(source)
    try:
        model = raise_for_pairs(model)
    except OpsetError as error:
        raise SurgeryError(f"{source}: {error}") from None
    with G_LOGGER.suppress(
        G_LOGGER.ERROR
    ):  # it prints to standard output, of every constant in FP8
        graph = gs.import_onnx(onnx.shape_inference.infer_shapes(model, data_prop=True))
        changed = run_passes(sort_nodes(graph), passes)
        cleaned = gs.export_onnx(graph)
    cleaned.metadata_props.extend(model.metadata_props)
    cleaned.producer_name, cleaned.producer_version = model.producer_name, model.producer_version
    if form is not None:
        write_form(cleaned, form)
    _require_valid(cleaned, f"{source}: not valid ONNX after surgery", full_check=True)
    with replace_when_done(target) as temporary:
        temporary.write_bytes(cleaned.SerializeToString())
    return changed


def _load(path: Path) -> onnx.ModelProto:
    try:
        model = onnx.load(path, load_external_data=False)
    except FileNotFoundError:
        raise SurgeryError(f"{path}: no such file; export a Q/DQ ONNX model first") from None
    except DecodeError:
        raise SurgeryError(f"{path}: not an ONNX file; export the model again") from None
    _require_size(path, path.stat().st_size + _external_bytes(model))
    try:
        require_data_beside(model, path)
        onnx.load_external_data_for_model(model, str(path.parent))
    except (OSError, onnx.checker.ValidationError, GraphError) as error:
        raise SurgeryError(f"{path}: its external data cannot be read: {error}") from None
    require_small_functions(model)
    write_for_checker(model)
    _require_valid(model, f"{path}: not a valid ONNX model", full_check=False)
    return model


def _external_bytes(model: onnx.ModelProto) -> int:
    return sum(
        int(entry.value)
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "length"
    )


def _require_size(path: Path, num_bytes: int) -> None:
    if num_bytes > MAX_BYTES:
        raise SurgeryError(
            f"{path}: {num_bytes / 1e9:.1f} GB, but surgery takes models up to 2 GB; store its "
            "weights as int8 or split the model"
        )


def _require_valid(model: onnx.ModelProto, problem: str, full_check: bool) -> None:
    try:
        onnx.checker.check_model(model, full_check=full_check)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise SurgeryError(f"{problem}: {one_line(error, 400)}") from error
