"""An ONNX file of the user's own as a PyTorch module, checked against ONNX Runtime."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import onnx
import onnx2torch
import onnx_graphsurgeon as gs
from onnx2torch.node_converters import get_converter
from onnx2torch.onnx_graph import OnnxGraph
from onnx2torch.utils.safe_shape_inference import safe_shape_inference
from torch import fx, nn

from reptrt.engines.foreign.text import one_line
from reptrt.models.inputs import Feed, NetworkInput, other_sizes, random_feed
from reptrt.models.onnx_import.canonical import CanonicalGraph
from reptrt.models.onnx_import.check_import import TOLERANCE, ImportCheck, check_numerics
from reptrt.models.onnx_import.counted_inputs import canonicalize_inputs
from reptrt.models.onnx_import.cut import find_tail
from reptrt.models.onnx_import.data import OnnxFileError
from reptrt.models.onnx_import.file_inputs import OnnxFile
from reptrt.models.onnx_import.islands import IslandNote, Values, collapse
from reptrt.models.onnx_import.pieces import is_own, makers, pixel_tensors
from reptrt.models.onnx_import.rewrite import layer_paths, rewrite, to_onnx2torch
from reptrt.models.onnx_import.tail import Tail, down_to_floats, split_tail
from reptrt.models.onnx_import.upgrade import OPSET
from reptrt.models.onnx_import.values import Array, range_error, run_onnx_feeds

logger = logging.getLogger(__name__)

_MOST_TRIES = 12
_DIFFERS = "PyTorch computes something else than ONNX Runtime"


@dataclass(frozen=True)
class ImportedNetwork:
    """A module that computes what an ONNX file does, up to its tail.

    Attributes:
        module: In evaluation mode, float32; takes `inputs` in order, returns one tensor or a list.
        outputs: Names that the file gives its outputs.
        batch_size: N where the graph allows no other; None where any will do.
        relative_error: Largest distance of the module's outputs from ONNX Runtime's, in units of their range.
        tail: What follows the module; None where it makes the file's outputs itself.
        islands: What ONNX Runtime computes, the tail included.
        check: Compares `module` with ONNX Runtime on values of `inputs`, in order.
        inputs: What it reads.
    """

    module: nn.Module
    outputs: tuple[str, ...]
    batch_size: int | None
    relative_error: float
    tail: Tail | None = None
    islands: tuple[IslandNote, ...] = ()
    check: Callable[[Sequence[Array]], ImportCheck] | None = None
    inputs: tuple[NetworkInput, ...] = ()


def import_onnx(
    file: OnnxFile,
    image_size: tuple[int, int] | None,
    feed: Feed | None = None,
    size_range: tuple[tuple[int, int], tuple[int, int]] | None = None,
) -> ImportedNetwork:
    """Import a checked file for images of (height, width) `image_size`, None where it reads none.

    A sample `feed`, by the names of the file, tells the sides that the file leaves open; between the
    smallest and the largest size of `size_range` the size stays open. What cannot be imported, or computes something else in PyTorch, becomes an island.

    Raises:
        OnnxFileError: One line: neither ONNX Runtime nor PyTorch runs it.
    """
    try:
        inputs = file.network_inputs(image_size, feed, size_range)
        canonical, inputs = canonicalize_inputs(file, inputs, feed)
        network = replace(_import(canonical), inputs=inputs)
    except OnnxFileError as error:
        raise error.at(file.path) from None
    except Exception as error:  # a damaged file breaks graph libraries in many ways
        reason = f"cannot be imported: {type(error).__name__}: {one_line(error)}"
        raise OnnxFileError(reason).at(file.path) from error
    logger.info("%s: imported; error %.1e of the range", file.path, network.relative_error)
    for note in network.islands:
        logger.info("%s: %s", file.path, describe_island(note))
    return network


def describe_island(note: IslandNote) -> str:
    """What an island is and why, in one line."""
    kind = "tail" if note.is_tail else "island"
    more = f" and {len(note.nodes) - 1} more nodes" if len(note.nodes) > 1 else ""
    return f"{kind} of {', '.join(note.op_types)}: {note.nodes[0]!r}{more} in float: {note.reason}"


def _import(canonical: CanonicalGraph) -> ImportedNetwork:
    """Try until all that cannot be imported is an island or in the tail."""
    values = Values(canonical)
    refused = _computed_from_batch(canonical.graph)
    for _ in range(_MOST_TRIES):
        trial, tail, notes = _divide(canonical, refused, values)
        outputs = tuple(tensor.name for tensor in trial.graph.outputs)
        found = rewrite(trial) or _convert_or_refuse(trial)
        if isinstance(found, dict):
            refused = refused | _by_node(canonical.graph, found, refused)
            continue
        module, tensors = found
        check = _check_all_sizes(module, tensors, canonical, outputs)
        if check.error <= TOLERANCE:
            if tail is not None:
                notes.append(tail.note)
                _check_tail(tail, canonical, values)
            names = outputs if tail is None else tail.outputs
            return ImportedNetwork(
                module,
                names,
                canonical.batch_size,
                check.error,
                tail,
                tuple(notes),
                partial(check_numerics, module, tensors, canonical, outputs),
            )
        logger.warning("%s: %s by %.1e of its range", check.node, _DIFFERS, check.error)
        refused = refused | _by_node(canonical.graph, {check.tensor: _DIFFERS}, refused)
    raise OnnxFileError(f"cannot be imported: {len(refused)} nodes compute something else")


def _check_all_sizes(
    module: fx.GraphModule,
    tensors: Mapping[str, tuple[str, str]],
    canonical: CanonicalGraph,
    outputs: Sequence[str],
) -> ImportCheck:
    """The worst check: of the usual size, and of the ends of what stays open."""
    checks = [check_numerics(module, tensors, canonical, outputs)]
    for inputs in other_sizes(canonical.inputs):
        values = list(random_feed(inputs, 2, seed=1).values())
        checks.append(check_numerics(module, tensors, canonical, outputs, values))
    return max(checks, key=lambda check: check.error)


def _divide(
    canonical: CanonicalGraph, refused: Mapping[str, str], values: Values
) -> tuple[CanonicalGraph, Tail | None, list[IslandNote]]:
    """A copy without its tail and with islands in the place of the nodes `refused`."""
    trial = replace(
        canonical,
        graph=canonical.graph.copy(),
        roots=dict(canonical.roots),
        shapes=dict(canonical.shapes),
    )
    names = find_tail(trial.graph, set(refused))
    names = down_to_floats(trial.graph, names, values)
    tail = split_tail(trial.graph, names, refused, values)
    present = {node.name for node in trial.graph.nodes}
    inside = {name: why for name, why in refused.items() if name in present}
    return trial, tail, collapse(trial, inside, values)


def _computed_from_batch(graph: gs.Graph) -> dict[str, str]:
    """Nodes that read the number of images, or compute with it."""
    pixels = pixel_tensors(graph)
    return {
        node.name: "computes with the number of images"
        if any(isinstance(tensor, gs.Variable) for tensor in node.inputs)
        else "no pixel changes it"
        for node in graph.nodes
        if not is_own(node) and not any(tensor.name in pixels for tensor in node.outputs)
    }


def _by_node(
    graph: gs.Graph, found: Mapping[str, str], refused: Mapping[str, str]
) -> dict[str, str]:
    """Node of `graph` -> reason, for the tensors of `found`.

    Raises:
        OnnxFileError: none of them is new, so that trying again would not help.
    """
    made_by = makers(graph)
    nodes = {made_by[name].name: why for name, why in found.items() if name in made_by}
    if not nodes.keys() - refused.keys():
        raise OnnxFileError(next(iter(found.values())))
    return nodes


def _check_tail(tail: Tail, canonical: CanonicalGraph, values: Values) -> None:
    """The tail must make the file's outputs of what is at the cut.

    Raises:
        OnnxFileError: it does not: its nodes mean something else in the opset that export writes.
    """
    made = [name for name in tail.outputs if name not in tail.cut]
    known = values.of([*tail.inputs, *made])[0]
    found = run_onnx_feeds(
        onnx.load_model_from_string(tail.model), {name: known[name] for name in tail.inputs}
    )
    for name in made:
        if range_error(known[name], found[name]) > TOLERANCE:
            raise OnnxFileError(f"its output {name!r} changes in opset {OPSET}")


def _convert_or_refuse(
    canonical: CanonicalGraph,
) -> dict[str, str] | tuple[fx.GraphModule, dict[str, tuple[str, str]]]:
    """Convert; tensor -> why its node cannot be.

    Returns:
        The module, and path of a part -> (node, tensor) that it computes, in graph order.
    """
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
        refused = _find_culprits(proto)
        if not refused:
            raise OnnxFileError(f"cannot be imported: {one_line(error)}") from None
        return refused
    targets = [OnnxGraph.generate_node_name(node) for node in proto.graph.node]
    renamed = dict(zip(targets, (paths[name] for name, _ in nodes), strict=True))
    return _rename(converted, renamed), dict(zip(renamed.values(), nodes, strict=True))


def _find_culprits(proto: onnx.ModelProto) -> dict[str, str]:
    """Tensors whose nodes onnx2torch cannot convert, and why."""
    graph = OnnxGraph(safe_shape_inference(proto).graph)
    versions = {entry.domain: entry.version for entry in proto.opset_import}
    refused: dict[str, str] = {}
    for node in graph.nodes.values():
        try:
            get_converter(node.operation_type, versions[node.domain], node.domain)(node, graph)
        except Exception as reason:  # one that stopped the conversion
            is_unknown = "Converter is not" in str(reason) or isinstance(reason, KeyError)
            why = "no importer" if is_unknown else one_line(reason)
            refused[node.output_values[0]] = f"{node.operation_type}: {why}"
    return refused


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
