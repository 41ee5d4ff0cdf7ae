"""An engine that ends in front of the tail, where TensorRT has no kernel for what sorts or selects there.

TensorRT-RTX has none for NonMaxSuppression, NonZero and RoiAlign, and no TensorRT for Compress or Unique. The
engine then returns what the tail reads, and the tail is a file of its own that goes on from there. What it has
none for in front of the tail is said before anything is calibrated.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import onnx

from reptrt.engines.artifacts import file_sha256, replace_when_done
from reptrt.engines.build.builder import BuildError
from reptrt.engines.build.parse import Refused, parse_error, refused_node
from reptrt.engines.inspection.placement_notes import read_islands, write_islands
from reptrt.engines.partial import temporary_folder
from reptrt.engines.surgery import DEFAULT_PASSES
from reptrt.engines.surgery.clean_file import clean_file
from reptrt.engines.target import MissingComponentError, load_backend
from reptrt.models.card import ModelCard
from reptrt.models.onnx_import.tail import Tail
from reptrt.pipeline.model_card import read_card
from reptrt.pipeline.run import Run
from reptrt.pipeline.workspace.folder import discard

logger = logging.getLogger(__name__)


def cut_tail(run: Run) -> None:
    """Write `model.cut.onnx` and `model.tail.onnx` where the tail cannot be in the engine, else neither.

    Raises:
        MissingComponentError: nothing here builds for the target.
    """
    workspace = run.workspace
    card = read_card(workspace.trt_onnx)
    tail = run.loaded.tail if card.cut is not None else None
    refused = None if tail is None else _refused(run, workspace.trt_onnx)
    if tail is None or refused is None or not _is_behind(refused, workspace.trt_onnx, card):
        discard(workspace.cut_onnx)
        discard(workspace.tail_onnx)
        return
    inputs = {"trt_onnx": file_sha256(workspace.trt_onnx), "refused": refused.operator}
    why = f"{run.target.backend} has no {refused.operator}: the engine ends in front of it, and"
    why += f" {workspace.tail_onnx.name} goes on from there"
    logger.warning("%s: %s", run.recipe.model, why)

    def work() -> None:
        cut = end_at(onnx.load(workspace.trt_onnx), card.compared)
        _say_why(cut, why)
        for path, model in (
            (workspace.cut_onnx, cut),
            (workspace.tail_onnx, tail_model(tail, card)),
        ):
            with replace_when_done(path) as temporary:
                onnx.save(model, temporary)

    run.stage("tail", inputs, "cut_onnx", "tail_onnx").run(work)


def require_kernels(run: Run) -> None:
    """Ask the target's parser for the float network, where it is installed.

    Raises:
        BuildError: it refuses what is in front of the tail, also behind what surgery mends.
    """
    path, card = run.workspace.fp32_onnx, read_card(run.workspace.fp32_onnx)
    try:
        if _refused(run, path) is None:
            return
    except MissingComponentError:
        return
    with temporary_folder() as folder:
        mended = Path(folder, path.name)
        clean_file(path, mended, DEFAULT_PASSES)
        refused = _refused(run, mended)
        if refused is not None and not _is_behind(refused, mended, card):
            reason = parse_error(mended, load_backend(run.target))
            raise BuildError(f"{run.recipe.model}: {reason or f'has no {refused.operator}'}")


def _refused(run: Run, path: Path) -> Refused | None:
    if run.target.backend == "onnxruntime":
        return None
    return refused_node(path, load_backend(run.target))


def _is_behind(refused: Refused, path: Path, card: ModelCard) -> bool:
    """Whether a node of the file is of its tail."""
    graph = onnx.load(path, load_external_data=False).graph
    made = {name for node in graph.node for name in node.output}
    front = {node.name for node in _in_front(graph, card.compared)}
    return made.issuperset(card.compared) and refused.name not in front


def end_at(model: onnx.ModelProto, outputs: Collection[str]) -> onnx.ModelProto:
    """`model` without what comes behind the tensors `outputs`, in place; it returns these."""
    model = onnx.shape_inference.infer_shapes(model)
    graph = model.graph
    nodes = _in_front(graph, outputs)
    read = {name for node in nodes for name in node.input}
    weights = [tensor for tensor in graph.initializer if tensor.name in read]
    known = {value.name: value for value in (*graph.value_info, *graph.output)}
    made = [known[name] for name in outputs]
    inner = [v for v in graph.value_info if v.name in read and v.name not in outputs]
    ended = onnx.helper.make_graph(nodes, graph.name, list(graph.input), made, weights)
    ended.value_info.extend(inner)
    graph.CopyFrom(ended)
    return model


def _in_front(graph: onnx.GraphProto, tensors: Collection[str]) -> list[onnx.NodeProto]:
    """The nodes that `tensors` are made by, in order."""
    wanted, found = set(tensors), []
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            found.append(node)
    return found[::-1]


def tail_model(tail: Tail, card: ModelCard) -> onnx.ModelProto:
    """The tail as a file of its own; where it reads the network's inputs too, by the engine's names."""
    model = onnx.load_model_from_string(tail.model)
    names = dict(zip(tail.sources, (one.name for one in card.inputs), strict=True))
    for value in model.graph.input:
        value.name = names.get(value.name, value.name)
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
    return model


def _say_why(model: onnx.ModelProto, why: str) -> None:
    islands = [
        replace(one, reason=f"{one.reason}; {why}") if one.role == "tail" else one
        for one in read_islands(model)
    ]
    write_islands(islands, model)
