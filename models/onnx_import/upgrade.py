"""Pieces of an ONNX file in the opset that export writes, so that their nodes can be put back."""

from __future__ import annotations

import onnx
from onnx import version_converter

from reptrt.engines.foreign.text import one_line
from reptrt.models.onnx_import.data import OnnxFileError

OPSET = 19
IR_VERSION = 10
_FIRST_RESIZE_WITH_COORDINATES = 11
_NEW_MODES = {"linear": "bilinear", "cubic": "bicubic"}
"""Of GridSample, whose modes were renamed in opset 20."""


def to_export_opset(piece: onnx.ModelProto) -> onnx.ModelProto:
    """`piece` in opset 19, with the names of its nodes.

    Raises:
        OnnxFileError: an operator has no form in that opset.
    """
    opset = next(entry.version for entry in piece.opset_import if entry.domain in ("", "ai.onnx"))
    if opset < OPSET:
        piece = _raise(piece, opset)
    elif opset > OPSET:
        piece = _lower(piece)
    piece.ir_version = IR_VERSION
    return piece


def _raise(piece: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    names = {node.output[0]: node.name for node in piece.graph.node}
    others = [entry for entry in piece.opset_import if entry.domain not in ("", "ai.onnx")]
    try:
        converted = version_converter.convert_version(piece, OPSET)
    except Exception as error:  # the converter is C++ and has no error class
        raise OnnxFileError(
            f"cannot be raised from opset {opset} to {OPSET}: {one_line(error)}; export the model"
            f" again with opset 17 or later"
        ) from None
    for node in converted.graph.node:
        node.name = names.get(node.output[0], node.name)
        if node.op_type == "Resize" and opset < _FIRST_RESIZE_WITH_COORDINATES:
            _set_text(node, "coordinate_transformation_mode", "asymmetric")
            _set_text(node, "nearest_mode", "floor")
    converted.opset_import.extend(
        entry for entry in others if entry.domain not in {e.domain for e in converted.opset_import}
    )
    return converted


def _lower(piece: onnx.ModelProto) -> onnx.ModelProto:
    """Take nodes of a later opset for those of 19, which most of them are."""
    for node in piece.graph.node:
        if node.domain in ("", "ai.onnx") and not _exists(node.op_type):
            raise OnnxFileError(
                f"{node.op_type} {node.name!r} is newer than opset {OPSET}, which TensorRT from"
                " 10.3 on reads: export with opset 19"
            )
        if node.op_type == "GridSample":
            mode = next((a.s.decode() for a in node.attribute if a.name == "mode"), "linear")
            _set_text(node, "mode", _NEW_MODES.get(mode, mode))
    for entry in piece.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = OPSET
    return piece


def _exists(op_type: str) -> bool:
    try:
        onnx.defs.get_schema(op_type, OPSET, "")
    except onnx.defs.SchemaError:
        return False
    return True


def _set_text(node: onnx.NodeProto, name: str, value: str) -> None:
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, onnx.helper.make_attribute(name, value)])
