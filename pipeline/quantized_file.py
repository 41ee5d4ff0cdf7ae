"""ONNX files that are quantized already, and the float networks that they imply."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.logger import G_LOGGER

from reptrt.engines.foreign.graphs import sort_nodes
from reptrt.engines.foreign.opset import OpsetError, raise_for_pairs
from reptrt.engines.surgery import AS_PAIRS, FLOAT_PASSES, Pass, SurgeryError, run_passes
from reptrt.engines.surgery.dialects.dynamic import explain_dynamic, is_dynamic
from reptrt.engines.surgery.dialects.quantize_arithmetic import ROUND
from reptrt.engines.surgery.qdq import DEQUANTIZE, QUANTIZE
from reptrt.engines.surgery.repair.state_zero_points import is_operator_format
from reptrt.models.onnx_import.as_is import FloatFile
from reptrt.models.onnx_import.data import OnnxFileError
from reptrt.models.onnx_import.file import read_onnx
from reptrt.models.onnx_import.file_inputs import OnnxFile
from reptrt.pipeline.recipe import Recipe

_PAIR = (QUANTIZE, DEQUANTIZE)


@dataclass(frozen=True)
class FloatOrigin:
    """Where the float network of a file that is quantized already comes from.

    Attributes:
        file: ONNX file that it was made from; None takes what it implies.
        requantize: forget the scales of the file.
    """

    file: Path | None = None
    requantize: bool = False

    @classmethod
    def of(cls, recipe: Recipe) -> FloatOrigin:
        """What `recipe` says of it."""
        return cls(recipe.float_model, recipe.requantize)

    def __call__(self, file: OnnxFile) -> FloatFile | None:
        """The float network of `file`; None where it is in float itself.

        Raises:
            OnnxFileError: what the user says of it does not hold, or it has no float form here.
        """
        if not is_quantized(file):
            if self.requantize or self.file:
                raise OnnxFileError(
                    f"{file.path}: `requantize` and `float_model` are for ONNX files that are quantized"
                    " already, and this one is not: leave them out"
                )
            return None
        if self.requantize and self.file:
            raise OnnxFileError(f"{self.file}: is in float: give it as MODEL, without `requantize`")
        if not self.requantize:
            _require_static(file)
        keeps_scales = not self.requantize and not stores_weights_only(file)
        return FloatFile(self._float_file(file), keeps_scales)

    def _float_file(self, file: OnnxFile) -> OnnxFile:
        if self.file is None:
            return imply_float(file)
        given = read_onnx(self.file)
        if is_quantized(given):
            raise OnnxFileError(
                f"{self.file}: `float_model` is quantized too: give the float model"
            )
        return given


def is_quantized(file: OnnxFile) -> bool:
    """Whether a file holds quantization in any spelling.

    Raises:
        OnnxFileError: it rounds, and graph surgery cannot read it.
    """
    nodes = file.proto.graph.node
    if any(node.op_type in _PAIR or is_operator_format(node) for node in nodes):
        return True
    if not any(node.op_type == ROUND for node in nodes):
        return False
    return any(node.op in _PAIR for node in _operate(file, AS_PAIRS).nodes)


def stores_weights_only(file: OnnxFile) -> bool:
    """Whether all that is quantized are weights, as smaller files have them: no activation has a scale."""
    graph = file.proto.graph
    constants = {tensor.name for tensor in graph.initializer}
    constants |= {name for node in graph.node if node.op_type == "Constant" for name in node.output}
    found = [node for node in graph.node if node.op_type in _PAIR or is_operator_format(node)]
    return bool(found) and all(
        node.op_type == DEQUANTIZE and node.input[0] in constants for node in found
    )


def imply_float(file: OnnxFile) -> OnnxFile:
    """The float network of a quantized file: weights dequantized, activations not rounded.

    Raises:
        OnnxFileError: a part of it has no float form here.
    """
    proto = gs.export_onnx(_operate(file, FLOAT_PASSES))
    for node in proto.graph.node:
        if node.op_type in _PAIR or is_operator_format(node):
            raise OnnxFileError(
                f"{node.op_type} {node.name!r} has no float form here: give the float model"
            ).at(file.path)
    return replace(file, proto=proto)


def _require_static(file: OnnxFile) -> None:
    """Refuse grids that are computed from each image.

    Raises:
        OnnxFileError: there is one.
    """
    for node in file.proto.graph.node:
        if is_dynamic(node.op_type):
            name = node.name or node.output[0]
            raise OnnxFileError(f"{file.path}: {explain_dynamic(node.op_type, name)}")


def _operate(file: OnnxFile, passes: tuple[Pass, ...]) -> gs.Graph:
    """The graph of `file` behind `passes`.

    Raises:
        OnnxFileError: a pass refuses it.
    """
    try:
        proto = onnx.shape_inference.infer_shapes(raise_for_pairs(file.proto), data_prop=True)
        with G_LOGGER.suppress(G_LOGGER.ERROR):
            graph = sort_nodes(gs.import_onnx(proto))
            run_passes(graph, passes)
    except (SurgeryError, OpsetError) as error:
        raise OnnxFileError(str(error)).at(file.path) from None
    return graph
