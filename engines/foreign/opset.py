"""Old files in a later opset, with the names of their nodes."""

from __future__ import annotations

import onnx
from onnx import version_converter

from reptrt.engines.foreign.text import one_line

_FIRST_RESIZE_WITH_COORDINATES = 11
_PAIRS_PER_CHANNEL = 13
_NO_PAIRS = ("QLinear", "QGemm", "Round")


class OpsetError(ValueError):
    """An operator has no form in a later opset."""

    exit_code = 2


def opset_of(model: onnx.ModelProto) -> int:
    """Version of ONNX's own operators."""
    return next((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), 0)


def raise_for_pairs(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` in the first opset whose pairs have one scale per channel, if it will get such pairs.

    Raises:
        OpsetError: an operator has no form there.
    """
    needs_pairs = any(node.op_type.startswith(_NO_PAIRS) for node in model.graph.node)
    if not needs_pairs or opset_of(model) >= _PAIRS_PER_CHANNEL:
        return model
    return raise_opset(model, _PAIRS_PER_CHANNEL)


def raise_opset(model: onnx.ModelProto, version: int) -> onnx.ModelProto:
    """`model` in opset `version`, which is later than its own.

    Raises:
        OpsetError: an operator has no form there.
    """
    opset = opset_of(model)
    names = {node.output[0]: node.name for node in model.graph.node}
    others = [entry for entry in model.opset_import if entry.domain not in ("", "ai.onnx")]
    try:
        converted = version_converter.convert_version(model, version)
    except Exception as error:  # the converter is C++ and has no error class
        raise OpsetError(
            f"cannot be raised from opset {opset} to {version}: {one_line(error)}; export the model"
            f" again with opset 17 or later"
        ) from None
    for node in converted.graph.node:
        node.name = names.get(node.output[0], node.name)
        if node.op_type == "Resize" and opset < _FIRST_RESIZE_WITH_COORDINATES:
            set_text(node, "coordinate_transformation_mode", "asymmetric")
            set_text(node, "nearest_mode", "floor")
    converted.opset_import.extend(
        entry for entry in others if entry.domain not in {e.domain for e in converted.opset_import}
    )
    return converted


def set_text(node: onnx.NodeProto, name: str, value: str) -> None:
    """Give `node` the attribute `name`, in place of the one that it has."""
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, onnx.helper.make_attribute(name, value)])
