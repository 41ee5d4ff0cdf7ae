"""An ONNX file of the user's own as a PyTorch module, checked against ONNX Runtime."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx2torch
import torch
from numpy.typing import NDArray
from onnx2torch.node_converters import get_converter
from onnx2torch.onnx_graph import OnnxGraph
from onnx2torch.utils.safe_shape_inference import safe_shape_inference
from torch import fx, nn

from reptrt.engines.foreign.text import one_line
from reptrt.models.onnx_import.canonical import CanonicalGraph, canonicalize
from reptrt.models.onnx_import.data import OnnxFileError
from reptrt.models.onnx_import.file import OnnxFile
from reptrt.models.onnx_import.rewrite import layer_paths, rewrite, to_onnx2torch
from reptrt.models.onnx_import.values import run_onnx

logger = logging.getLogger(__name__)

TOLERANCE = 1e-3
"""Largest distance of the module's outputs from ONNX Runtime's, relative to their norm."""

Array = NDArray[Any]
_GREY = np.float32(114 / 255)


@dataclass(frozen=True)
class ImportedNetwork:
    """A module that computes what an ONNX file does.

    Attributes:
        module: In evaluation mode, float32; images [N, 3, H, W] to one tensor or a list.
        outputs: Names that the file gives them.
        batch_size: N where the graph allows no other; None where any will do.
        relative_error: Largest of its outputs' distances from ONNX Runtime's.
    """

    module: nn.Module
    outputs: tuple[str, ...]
    batch_size: int | None
    relative_error: float


def import_onnx(file: OnnxFile, image_size: tuple[int, int]) -> ImportedNetwork:
    """Import a checked file for images of (height, width) `image_size`.

    Raises:
        OnnxFileError: One line: an operator cannot be imported, or the module computes something
            else than ONNX Runtime; both name the node.
    """
    try:
        canonical = canonicalize(file, image_size)
        outputs = tuple(tensor.name for tensor in canonical.graph.outputs)
        rewrite(canonical)
        module, tensors = _to_module(canonical)
        distance = _check_numerics(module, tensors, canonical, outputs, image_size)
    except OnnxFileError as error:
        raise error.at(file.path) from None
    except Exception as error:  # a damaged file breaks graph libraries in many ways
        reason = f"cannot be imported: {type(error).__name__}: {one_line(error)}"
        raise OnnxFileError(reason).at(file.path) from error
    logger.info("%s: imported; relative error %.1e against ONNX Runtime", file.path, distance)
    return ImportedNetwork(module, outputs, canonical.batch_size, distance)


def _to_module(canonical: CanonicalGraph) -> tuple[fx.GraphModule, dict[str, tuple[str, str]]]:
    """Convert; also path of a module -> (node, tensor) that it computes, in graph order."""
    proto = to_onnx2torch(canonical)
    paths = layer_paths(canonical)
    nodes = [(node.name, str(node.output[0])) for node in proto.graph.node]
    for index, node in enumerate(proto.graph.node):
        node.name = f"node_{index}"  # what onnx2torch calls its module
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            converted = onnx2torch.convert(proto)
    except Exception as error:  # whatever a converter stumbles over
        raise OnnxFileError(_find_culprit(proto, [name for name, _ in nodes], error)) from None
    targets = [OnnxGraph.generate_node_name(node) for node in proto.graph.node]
    renamed = dict(zip(targets, (paths[name] for name, _ in nodes), strict=True))
    return _rename(converted, renamed), dict(zip(renamed.values(), nodes, strict=True))


def _find_culprit(proto: onnx.ModelProto, names: Sequence[str], error: Exception) -> str:
    """Say which node onnx2torch cannot convert."""
    graph = OnnxGraph(safe_shape_inference(proto).graph)
    versions = {entry.domain: entry.version for entry in proto.opset_import}
    for name, node in zip(names, graph.nodes.values(), strict=True):
        try:
            version = versions[node.domain]
            get_converter(node.operation_type, version, node.domain)(node, graph)
        except Exception as reason:  # the one that stopped the conversion
            why = f" ({one_line(reason)})" if "Converter is not" not in str(reason) else ""
            return (
                f"{node.operation_type} {name!r} cannot be imported{why}: export the model without"
                " it, or bring it as package.module:callable"
            )
    return f"cannot be imported: {one_line(error)}"


def _rename(converted: fx.GraphModule, paths: Mapping[str, str]) -> fx.GraphModule:
    """Put every module where its layer's name says; constants stay together."""
    root = nn.Module()
    constants = dict(converted.named_children()).get("initializers")
    if constants is not None:
        root.add_module("onnx_constants", constants)
    for node in converted.graph.nodes:
        if node.op == "call_module":
            target = paths[node.target]
            _add(root, target, converted.get_submodule(node.target))
            node.target = target
        elif node.op == "get_attr":
            node.target = node.target.replace("initializers.", "onnx_constants.", 1)
    module = fx.GraphModule(root, converted.graph).eval()
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module


def _add(root: nn.Module, path: str, module: nn.Module) -> None:
    *parents, last = path.split(".")
    for name in parents:
        if name not in root._modules:
            root.add_module(name, nn.Module())
        root = root.get_submodule(name)
    root.add_module(last, module)


def _check_numerics(
    module: fx.GraphModule,
    tensors: Mapping[str, tuple[str, str]],
    canonical: CanonicalGraph,
    outputs: Sequence[str],
    image_size: tuple[int, int],
) -> float:
    """Largest relative error on a random and a grey image.

    Raises:
        OnnxFileError: it exceeds `TOLERANCE`; the first node that differs is named.
    """
    random = np.random.default_rng(1).random((1, 3, *image_size), dtype=np.float32)
    images = np.concatenate([random, np.full_like(random, _GREY)])
    images = np.resize(images, (canonical.batch_size or 2, *images.shape[1:]))
    (expected,) = run_onnx(canonical.reference, outputs, [images])
    for name in outputs:
        if not np.isfinite(expected[name].astype(np.float64)).all():
            raise OnnxFileError(f"its output {name!r} is not finite for a grey or a random image")
    try:
        with torch.no_grad():
            found = module(torch.from_numpy(images))
    except Exception as error:
        raise OnnxFileError(f"its import does not run: {one_line(error)}") from None
    actual = [found] if isinstance(found, torch.Tensor) else list(found)
    errors = [
        _relative_error(expected[name], tensor.numpy())
        for name, tensor in zip(outputs, actual, strict=True)
    ]
    worst = max(errors)
    if worst <= TOLERANCE:
        return worst
    node = _first_difference(module, tensors, canonical.reference, images)
    raise OnnxFileError(
        f"its import differs from ONNX Runtime by {worst:.1e} of the output, from {node} on: bring"
        " the model as package.module:callable"
    )


def _relative_error(expected: Array, actual: Array) -> float:
    """|actual - expected| / |expected|; infinite where shapes differ or numbers are none."""
    if expected.shape != actual.shape:
        return float("inf")
    reference = expected.astype(np.float64)
    distance = float(np.linalg.norm(actual.astype(np.float64) - reference))
    norm = float(np.linalg.norm(reference))
    error = distance / norm if norm else distance
    return error if np.isfinite(error) else float("inf")


def _first_difference(
    module: fx.GraphModule,
    tensors: Mapping[str, tuple[str, str]],
    reference: onnx.ModelProto,
    images: Array,
) -> str:
    """The first node in graph order whose output differs from ONNX Runtime's."""
    recorder = _Recorder(module)
    with torch.no_grad():
        recorder.run(torch.from_numpy(images))
    known = {name for node in reference.graph.node for name in node.output}
    names = [tensors[path][1] for path in recorder.values if tensors[path][1] in known]
    (expected,) = run_onnx(reference, names, [images])
    for path, value in recorder.values.items():
        node, tensor = tensors[path]
        if tensor in expected and _relative_error(expected[tensor], value) > TOLERANCE:
            return repr(node)
    return "its outputs"


class _Recorder(fx.Interpreter):
    """Runs a module and keeps what each of its parts returns."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.values: dict[str, Array] = {}

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Run one part."""
        result = super().call_module(target, args, kwargs)
        if isinstance(result, torch.Tensor):
            self.values[target] = result.numpy()
        return result
