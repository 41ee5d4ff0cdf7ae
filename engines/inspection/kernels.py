"""The kernels of an engine, read from TensorRT's build log or its engine inspector.

Two sources: the "Layers:" message that TensorRT-RTX logs at VERBOSE with DETAILED profiling (no GPU
needed; its format is undocumented, and pinned by tests to 1.7), and the engine inspector's JSON of
classic TensorRT, where 10.x joins "Format/Datatype" and 11 splits the two.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from reptrt.engines.report_schema import TensorType

_LAYERS_PREFIX = "Layers:"
_LINE = re.compile(r"^Name: (?P<name>.*?), LayerType: (?P<kind>[^,]*), Inputs: \[")
_TENSOR = re.compile(r"\{ Name: (?P<name>.*?), Dimensions: .*?Datatype: (?P<dtype>\w+)")
_TACTIC = re.compile(r", TacticName: (?P<tactic>[^,]*), StreamId:")
_ONNX_LAYER = re.compile(r"\[ONNX Layer: (.*?)\](?=\s*(?:\[ONNX Layer: |[\x1e\x1f]|$))")
_DTYPE = re.compile(r"Int8|Int4|Int32|Int64|FP32|Float|FP16|Half|BF16|BFloat16|FP8|FP4|Bool|UInt8")
_DTYPE_NAMES = {"FP32": "Float", "FP16": "Half", "BF16": "BFloat16"}
_SYNCHRONIZATION = ("signal", "wait")  # between streams; they compute nothing
_WEIGHT_KINDS = ("conv", "correlation", "gemm", "matrix", "matmul", "fusion")


class LayerListError(ValueError):
    """The text is not a layer list this version knows; `reptrt.engines.inspection.kernels` names what it reads."""

    exit_code = 2


@dataclass(frozen=True)
class Kernel:
    """One kernel of the engine and the ONNX nodes it computes.

    `weights` are the constants it reads: weights, scales and biases. `tactic` is the implementation
    TensorRT chose, empty where it does not say.
    """

    name: str
    kind: str
    inputs: tuple[TensorType, ...]
    weights: tuple[TensorType, ...]
    outputs: tuple[TensorType, ...]
    onnx_layers: tuple[str, ...]
    tactic: str = ""

    @property
    def multiplies_weights(self) -> bool:
        """Whether it is a convolution or matrix product, not the pointwise code around one."""
        return any(kind in self.kind.lower() for kind in _WEIGHT_KINDS)

    @property
    def is_int8(self) -> bool:
        """Whether it multiplies 8-bit activations by Int8 weights, as they are.

        A `fusion` kernel may read Int8 and multiply in float: it counts only where its tactic
        names an int8 product.
        """
        if not self.multiplies_weights or not self.inputs:
            return False
        if self.inputs[0][1] not in ("Int8", "UInt8"):
            return False
        if "fusion" in self.kind.lower() and "_i8" not in self.tactic:
            return False
        others = [dtype for _, dtype in (*self.inputs[1:], *self.weights)]
        return not others or "Int8" in others


def parse_kernels(layers: str) -> tuple[Kernel, ...]:
    """Return the kernels listed in `BuildResult.layers`, in execution order.

    Raises:
        LayerListError: `layers` is neither the RTX message nor inspector JSON with details.
    """
    text = layers.strip()
    if text.startswith(_LAYERS_PREFIX):
        return _parse_log(text)
    if text.startswith("{"):
        return _parse_json(text)
    raise LayerListError(
        "no layer list in this build log: build with DETAILED profiling, and with TensorRT-RTX log "
        "at VERBOSE (read: RTX 1.7 log, TensorRT 10 and 11 inspector JSON)"
    )


def _parse_log(text: str) -> tuple[Kernel, ...]:
    kernels = []
    for line in text.splitlines()[1:]:
        if not line.startswith("Name: "):  # blank line: "I/O Tensors:" and the rest follow
            break
        head = _LINE.match(line)
        if head is None:
            raise LayerListError(f"unknown form of layer line: {line[:120]}")
        if head["kind"] in _SYNCHRONIZATION:
            continue
        body, _, metadata = line.partition(", Metadata: ")
        tactic = _TACTIC.search(body)
        inputs, constants, outputs = _split_lists(body[head.end() :])
        kernels.append(
            Kernel(
                name=head["name"],
                kind=head["kind"],
                inputs=_log_tensors(inputs),
                weights=_log_tensors(constants),
                outputs=_log_tensors(outputs),
                onnx_layers=tuple(_ONNX_LAYER.findall(metadata)),
                tactic=tactic["tactic"] if tactic else "",
            )
        )
    return tuple(kernels)


def _split_lists(body: str) -> tuple[str, str, str]:
    """Cut the text behind "Inputs: [" into inputs, constants and outputs."""
    before_outputs, _, outputs = body.partition(", Outputs: [")
    inputs, _, constants = before_outputs.partition(", Constants: [")
    return inputs, constants, outputs


def _log_tensors(text: str) -> tuple[TensorType, ...]:
    return tuple((match["name"], match["dtype"]) for match in _TENSOR.finditer(text))


def _parse_json(text: str) -> tuple[Kernel, ...]:
    layers = json.loads(text).get("Layers", [])
    if any(isinstance(layer, str) for layer in layers):
        raise LayerListError("the inspector lists names only: build with DETAILED profiling")
    return tuple(_json_kernel(layer) for layer in layers)


def _json_kernel(layer: Mapping[str, object]) -> Kernel:
    weights = _json_tensors(layer.get("Constants"))
    described = layer.get("Weights")
    if isinstance(described, Mapping):
        weights = (("Weights", _dtype(str(described.get("Type")))), *weights)
    return Kernel(
        name=str(layer.get("Name", "")),
        kind=str(layer.get("LayerType", "")),
        inputs=_json_tensors(layer.get("Inputs")),
        weights=weights,
        outputs=_json_tensors(layer.get("Outputs")),
        onnx_layers=tuple(_ONNX_LAYER.findall(str(layer.get("Metadata", "")))),
        tactic=str(layer.get("TacticName", "")),
    )


def _json_tensors(tensors: object) -> tuple[TensorType, ...]:
    if not isinstance(tensors, list):
        return ()
    return tuple(
        (
            str(tensor.get("Name", "")),
            _dtype(str(tensor.get("Datatype", tensor.get("Format/Datatype")))),
        )
        for tensor in tensors
    )


def _dtype(text: str) -> str:
    """Return the datatype named in `text`, such as "Row major linear FP16 format"."""
    found = _DTYPE.search(text)
    if found is None:
        return text
    return _DTYPE_NAMES.get(found.group(), found.group())
