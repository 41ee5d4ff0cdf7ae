"""Pieces of an ONNX file in the opset that export writes, so that their nodes can be put back."""

from __future__ import annotations

from collections.abc import Collection

import onnx
from onnx import inliner

from reptrt.engines.foreign.opset import OpsetError, opset_of, raise_opset, set_text
from reptrt.models.onnx_import.data import OnnxFileError

OPSET = 19
IR_VERSION = 10
_NOT_LEGAL = {"AffineGrid"}
"""What ONNX writes by operators that ONNX Runtime then refuses."""

_NEW_MODES = {"linear": "bilinear", "cubic": "bicubic"}
"""Of GridSample, whose modes were renamed in opset 20."""


def to_export_opset(piece: onnx.ModelProto) -> onnx.ModelProto:
    """`piece` in opset 19, with the names of its nodes.

    Raises:
        OnnxFileError: an operator has no form in that opset.
    """
    opset = opset_of(piece)
    if opset < OPSET:
        try:
            piece = raise_opset(piece, OPSET)
        except OpsetError as error:
            raise OnnxFileError(str(error)) from None
    elif opset > OPSET:
        piece = _lower(piece)
    piece.ir_version = IR_VERSION
    return piece


def inline_newer(proto: onnx.ModelProto, known: Collection[str] = ()) -> onnx.ModelProto:
    """`proto` with operators that opset 19 lacks written by older ones, where ONNX says how.

    Those in `known` stay.
    """
    newer = {
        node.op_type
        for node in proto.graph.node
        if node.domain in ("", "ai.onnx") and not _exists(node.op_type)
    }
    named = [("", name) for name in sorted(newer.difference(known, _NOT_LEGAL))]
    if not named:
        return proto
    proto = onnx.shape_inference.infer_shapes(proto)
    proto.graph.value_info.extend(  # the inliner asks for the types of weights too
        onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        for tensor in proto.graph.initializer
    )
    return inliner.inline_selected_functions(proto, named, inline_schema_functions=True)


def _lower(piece: onnx.ModelProto) -> onnx.ModelProto:
    """Take nodes of a later opset for those of 19, which most of them are."""
    piece = inline_newer(piece)
    for node in piece.graph.node:
        if node.domain in ("", "ai.onnx") and not _exists(node.op_type):
            raise OnnxFileError(
                f"{node.op_type} {node.name!r} is newer than opset {OPSET}, which TensorRT from"
                " 10.3 on reads: export with opset 19"
            )
        if node.op_type == "GridSample":
            mode = next((a.s.decode() for a in node.attribute if a.name == "mode"), "linear")
            set_text(node, "mode", _NEW_MODES.get(mode, mode))
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
