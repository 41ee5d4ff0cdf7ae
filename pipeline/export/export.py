"""Write PyTorch graphs as typed ONNX: the float reference, and the Q/DQ model.

Opset 19, IR 10, FP32 inputs and outputs, int8 weight initializers behind DequantizeLinear,
explicit zero points of 0. Convolutions and linears carry the name of their PyTorch layer.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import onnx
import torch
from onnxscript import ir
from onnxscript import opset18 as op
from torch import fx

from reptrt.calibrators.quantized.quantized_model import QuantizedModel
from reptrt.engines.artifacts import replace_when_done
from reptrt.engines.inspection.placement_notes import (
    write_islands,
    write_reasons,
)
from reptrt.engines.report_schema import OperatorIsland
from reptrt.models.card import ModelCard
from reptrt.models.graph import example_tensors, open_axes
from reptrt.models.inputs import NetworkInput
from reptrt.models.onnx_import.islands import IslandNote
from reptrt.models.onnx_import.tail import Tail
from reptrt.pipeline.export.lighter_exporter import lighten_exporter
from reptrt.pipeline.export.lowering import lower, lower_float
from reptrt.pipeline.export.program import as_program, is_recorded
from reptrt.pipeline.export.put_back import (
    mark_islands,
    put_islands_back,
    put_tail_back,
    separate_outputs,
)
from reptrt.pipeline.model_card import write_card, write_facts

OPSET = 19
_BATCH = "batch"
_SIDES = {-1: "width", -2: "height"}
Precision = Literal["fp32", "fp16"]
SCALE_NAME = re.compile(r"(.+)_scale(?:_\d+)?")
"""Of the scale of a weight or of a point of quantization, as scales.json calls it."""
_VERBS = {"QuantizeLinear": "quantize", "DequantizeLinear": "dequantize"}
WEIGHT_NAME = re.compile(r"(.+)\.weight(_codes(_\d+)?)?")
"""Of a layer's weight, or of its codes, which have a number where the layer has a `weight_codes`."""


@dataclass(frozen=True)
class FileNotes:
    """What a quantized file says of itself: nodes that stayed as they are; `calibrator`, `seed` and the like."""

    islands: Sequence[IslandNote] = ()
    facts: Mapping[str, object] = field(default_factory=dict)


class ExportError(ValueError):
    """The graph cannot be written as ONNX."""

    exit_code = 2


def export_float(
    module: fx.GraphModule,
    path: Path,
    card: ModelCard,
    batch_size: int | None = None,
    *,
    precision: Precision = "fp32",
    tail: Tail | None = None,
) -> None:
    """Write a traced float network.

    Args:
        module: without quantizers (`reptrt.pipeline.export.prepare.Network.float_graph`).
        path: ONNX file to write, atomically.
        card: names of the outputs; travels in the file's metadata.
        batch_size: fixed N, or None for a dynamic batch.
        precision: of everything but inputs and outputs, which are FP32.
        tail: what follows the network in the file that it comes from.

    Raises:
        ExportError: an operator has no ONNX form.
    """
    lowered = lower_float(module) if precision == "fp16" else module
    proto = _to_onnx(lowered, path.name, card, batch_size, tail)
    _save(proto, path, card)


def export_qdq(
    model: QuantizedModel,
    path: Path,
    card: ModelCard,
    batch_size: int | None = None,
    *,
    precision: Precision = "fp32",
    tail: Tail | None = None,
    notes: FileNotes | None = None,
) -> None:
    """Write calibrated `model` with explicit QuantizeLinear/DequantizeLinear.

    Arguments and errors as in `export_float`; `precision` is the type of everything that is not
    INT8, and `notes` stand in the file's metadata beside the reasons of float layers.
    """
    proto = _to_onnx(lower(model, half=precision == "fp16"), path.name, card, batch_size, tail)
    float_layers = model.placement.float_layers
    layers = {node.name: called_layer(node.name, float_layers) for node in proto.graph.node}
    calls = {node: float_layers[layer] for node, layer in layers.items() if layer in float_layers}
    write_reasons({**float_layers, **calls}, proto)
    notes = notes or FileNotes()
    write_islands([_note(island) for island in notes.islands], proto)
    write_facts(notes.facts, proto)
    _save(proto, path, card)


def _note(island: IslandNote) -> OperatorIsland:
    return OperatorIsland(
        nodes=island.nodes,
        op_types=island.op_types,
        role="tail" if island.is_tail else "island",
        reason=island.reason,
        weight_bytes=island.weight_bytes,
    )


def _save(proto: onnx.ModelProto, path: Path, card: ModelCard) -> None:
    write_card(card, proto)
    with replace_when_done(path) as temporary:
        onnx.save(proto, temporary)


def _to_onnx(
    module: fx.GraphModule, name: str, card: ModelCard, batch_size: int | None, tail: Tail | None
) -> onnx.ModelProto:
    lighten_exporter()
    module = mark_islands(separate_outputs(module))
    state = module.state_dict()
    device = next(iter(state.values())).device if state else torch.device("cpu")
    examples = example_tensors(card.inputs, batch_size, device)
    shapes = tuple(open_axes(one, batch_size) for one in card.inputs)
    with warnings.catch_warnings(), _quiet("torch.onnx", "onnxscript"):
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                as_program(module, examples, shapes) if is_recorded(module) else module.eval(),
                examples,
                dynamo=True,
                opset_version=OPSET,
                input_names=[one.name for one in card.inputs],
                output_names=list(card.compared),
                dynamic_shapes=shapes,
                custom_translation_table=_TRANSLATIONS,  # type: ignore[arg-type]  # its own example
                verbose=False,
                optimize=False,
            )
        except torch.onnx.OnnxExporterError as error:
            reason = str(error.__cause__ or error).strip().splitlines()[0]
            raise ExportError(f"{name}: cannot be written as ONNX: {reason}") from error
        assert program is not None
        _name_layers(program.model.graph)
        program.optimize()  # this folds transposed weights into nameless constants,
        _name_layers(program.model.graph)  # and makes new nodes
    proto: onnx.ModelProto = program.model_proto
    _name_sides(proto, card.inputs)
    put_islands_back(proto)
    if tail is not None:
        put_tail_back(proto, tail, [one.name for one in card.inputs])
    return proto


def _name_sides(proto: onnx.ModelProto, inputs: Sequence[NetworkInput]) -> None:
    """Call what stays open `batch`, `height` and `width`, where PyTorch numbers its symbols."""
    names: dict[str, str] = {}
    for one, value in zip(inputs, proto.graph.input, strict=True):
        for axis, side in enumerate(value.type.tensor_type.shape.dim):
            if side.dim_param:
                is_batch = axis == 0 and one.batched
                own = _BATCH if is_batch else _SIDES[axis - len(value.type.tensor_type.shape.dim)]
                names.setdefault(side.dim_param, own)
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for side in value.type.tensor_type.shape.dim:
            if side.dim_param:
                side.dim_param = re.sub(r"\w+", lambda m: names.get(m[0], m[0]), side.dim_param)


class _quiet:  # noqa: N801  # reads as a statement
    """Raise the level of chatty third-party loggers for a while."""

    def __init__(self, *names: str) -> None:
        self._loggers = [logging.getLogger(name) for name in names]

    def __enter__(self) -> None:
        self._levels = [logger.level for logger in self._loggers]
        for logger in self._loggers:
            logger.setLevel(logging.ERROR)

    def __exit__(self, *exception: object) -> None:
        for logger, level in zip(self._loggers, self._levels, strict=True):
            logger.setLevel(level)


def _name_layers(graph: ir.Graph) -> None:
    """Name each weighted node after its layer, and Q and DQ after the tensor that they quantize.

    What has a name already gets `name.call_2`, ...
    """
    calls: Counter[str] = Counter()
    for node in graph:
        name = _own_name(node)
        if name is not None:
            calls[name] += 1
            node.name = name if calls[name] == 1 else f"{name}.call_{calls[name]}"


def called_layer(node: str, layers: Collection[str]) -> str:
    """The layer that `node` of an exported file is a call of: `name.call_2` of `name`."""
    return node if node in layers else node.rpartition(".call_")[0] or node


def _own_name(node: ir.Node) -> str | None:
    if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return _layer_of(node.inputs[1])
    verb = _VERBS.get(node.op_type)
    scale = SCALE_NAME.fullmatch(str(node.inputs[1].name)) if verb and node.inputs[1] else None
    return None if scale is None else f"{scale[1]}.{verb}"


def _layer_of(weight: ir.Value | None) -> str | None:
    """Follow DQ, Cast and Transpose to the parameter that `weight` is made of."""
    while weight is not None and not weight.is_initializer():
        source = weight.producer()
        if source is None or source.op_type not in ("DequantizeLinear", "Cast", "Transpose"):
            return None
        weight = source.inputs[0]
    name = str(weight.name) if weight is not None else ""
    found = WEIGHT_NAME.fullmatch(name)
    return None if found is None else found[1]


def _to_quantize_linear(x: Any, scale: Any, zero_point: Any) -> Any:  # onnxscript's tensors
    return op.QuantizeLinear(x, scale, zero_point)


def _to_dequantize_linear(codes: Any, scale: Any, zero_point: Any) -> Any:
    return op.DequantizeLinear(codes, scale, zero_point, axis=0)


def _to_conv_transpose(  # noqa: PLR0913  # those of the operator
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,),
    output_padding: Sequence[int] = (0,),
    groups: int = 1,
    dilation: Sequence[int] = (1,),
) -> Any:
    strides, sides, more, dilations = (
        (list(one) * 2)[:2] for one in (stride, padding, output_padding, dilation)
    )
    return op.ConvTranspose(
        x, weight, bias, strides=strides, pads=[*sides, *sides], output_padding=more, group=groups,
        dilations=dilations,
    )  # fmt: skip


_TRANSLATIONS = {
    torch.ops.aten.conv_transpose2d.input: _to_conv_transpose,
    torch.ops.reptrt.quantize_linear.default: _to_quantize_linear,
    torch.ops.reptrt.dequantize_linear.default: _to_dequantize_linear,
}
