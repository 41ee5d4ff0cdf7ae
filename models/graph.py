"""Trace a float module into one flat graph of ATen operators, with every BatchNorm folded.

`torch.export` runs the user's Python once and records what it does, so placement, calibration and
export read operators (`conv2d`, `linear`, `cat`) and never need to know which module class wrote
them. Parameters keep their state-dict names.
"""

from __future__ import annotations

import hashlib
import io
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr

import torch
from torch import fx, nn
from torch.export import Dim
from torch.fx.experimental.symbolic_shapes import is_concrete_int

from reptrt.models.branches.merge import MergedLayer, merge_branches
from reptrt.models.constants import fold_weights, share_weights
from reptrt.models.inputs import IMAGES, NetworkInput, image_input
from reptrt.models.parameters import free_path, get_tensor, set_parameter

__all__ = [
    "EXAMPLE_BATCH",
    "INPUT_NAME",
    "TraceError",
    "aten",
    "drop_layout_copies",
    "example_tensors",
    "fold_batch_norm",
    "get_tensor",
    "graph_sha256",
    "layer_name",
    "merged_layers",
    "name_by_operator",
    "open_axes",
    "set_parameter",
    "tensor_bytes",
    "trace",
    "trace_inputs",
]

logger = logging.getLogger(__name__)

aten = torch.ops.aten

INPUT_NAME = IMAGES
EXAMPLE_BATCH = 2
"""Samples that an open batch is traced with: no other open side is usually that long."""

_CONVOLUTIONS = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)
_MERGED = "reptrt_merged_layers"
_BATCH_NORM = aten._native_batch_norm_legit_no_training.default


class TraceError(ValueError):
    """The module cannot be recorded as one graph."""

    exit_code = 2


def trace(
    module: nn.Module,
    image_size: tuple[int, int],
    *,
    batch_size: int | None = None,
    num_channels: int = 3,
) -> fx.GraphModule:
    """Record `module` on images [N, channels, H, W] as a functional ATen graph.

    Args:
        module: float network in evaluation mode, in deploy form.
        image_size: (height, width) of the input in pixels.
        batch_size: N; None keeps the batch dimension dynamic.
        num_channels: of the images.

    Raises:
        TraceError: the network's Python cannot be captured for these shapes.
    """
    return trace_inputs(module, [image_input(image_size, num_channels)], batch_size=batch_size)


def trace_inputs(
    module: nn.Module, inputs: Sequence[NetworkInput], *, batch_size: int | None = None
) -> fx.GraphModule:
    """Record `module` on any inputs, in the order of `forward`; see `trace`."""
    parameter = next(module.parameters(), torch.empty(0))
    examples = example_tensors(inputs, batch_size, parameter.device)
    shapes = tuple(open_axes(one, batch_size) for one in inputs)
    try:
        with _quiet():
            program = torch.export.export(module, examples, dynamic_shapes=shapes)
        _require_open(program, inputs, batch_size)
        traced = program.run_decompositions({}).module(check_guards=False)
    except TraceError:
        raise
    except Exception as error:
        raise TraceError(_explain(error, inputs, batch_size)) from error
    assert isinstance(traced, fx.GraphModule)
    drop_layout_copies(traced)
    merged = merge_branches(traced)
    fold_weights(traced)
    fold_batch_norm(traced)
    share_weights(traced)
    named = name_by_operator(traced)
    named.meta[_MERGED] = merged
    return named


def example_tensors(
    inputs: Sequence[NetworkInput], batch_size: int | None, device: torch.device | str = "cpu"
) -> tuple[torch.Tensor, ...]:
    """Zeros for every input; `EXAMPLE_BATCH` samples where the batch is open."""
    return tuple(
        torch.zeros(
            one.shape(batch_size or EXAMPLE_BATCH), dtype=getattr(torch, one.dtype), device=device
        )
        for one in inputs
    )


def open_axes(one: NetworkInput, batch_size: int | None) -> dict[int, object]:
    """Axes of an input that stay symbols."""
    offset = int(one.batched)
    axes = [side + offset for side in one.open_sides]
    return dict.fromkeys([0, *axes] if one.batched and batch_size is None else axes, Dim.AUTO)


def merged_layers(graph_module: fx.GraphModule) -> tuple[MergedLayer, ...]:
    """The layers that `trace` merged parallel branches into, in graph order."""
    merged: tuple[MergedLayer, ...] = graph_module.meta.get(_MERGED, ())
    return merged


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch.export, which prints half a graph when it fails: TraceError says it in a line."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.ERROR))
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _require_open(
    program: torch.export.ExportedProgram, inputs: Sequence[NetworkInput], batch_size: int | None
) -> None:
    read = set(program.graph_signature.user_inputs)
    placeholders = [node for node in program.graph.nodes if node.name in read]
    for one, node in zip(inputs, placeholders, strict=True):
        fixed = [
            axis
            for axis in open_axes(one, batch_size)
            if node.users and is_concrete_int(node.meta["val"].shape[axis])
        ]
        if fixed == [0] or (fixed and 0 in fixed and one.batched):
            raise TraceError(
                "the network fixes its batch size while it is traced, so it has no dynamic batch; "
                "give `batch_size=1`"
            )
        if fixed:
            raise TraceError(
                f"the network fixes the size of its input {one.name!r} while it is traced, so it"
                " cannot stay open; give `image_size` in the place of `dynamic_size`"
            )


def _explain(error: Exception, inputs: Sequence[NetworkInput], batch_size: int | None) -> str:
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))
    batch = "a dynamic batch" if batch_size is None else f"batch {batch_size}"
    shown = "; ".join(one.describe() for one in inputs)
    return (
        f"torch.export cannot record the network on {shown} with "
        f"{batch}: {type(error).__name__}: {reason}{_where(error)}"
    )


def _where(error: Exception) -> str:
    """Line of the user's own code that stopped torch.export, where it names one."""
    found = re.search(r'raised this error:\s+File "(.+)", line (\d+), in \S+\s+(.+)', str(error))
    return "" if found is None else f"; at {found[1]}:{found[2]}: {found[3].strip()}"


def name_by_operator(graph_module: fx.GraphModule) -> fx.GraphModule:
    """Copy with nodes called `conv2d`, `conv2d_1`, ...: torch.export numbers them by its version."""
    graph = fx.Graph()
    graph.set_codegen(graph_module.graph._codegen)  # what unpacks inputs and packs outputs
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph_module.graph.nodes:
        is_call = node.op == "call_function"
        copies[node] = graph.create_node(
            node.op,
            node.target,
            fx.map_arg(node.args, copies.__getitem__),
            fx.map_arg(node.kwargs, copies.__getitem__),
            name=node.target.__name__.partition(".")[0] if is_call else node.name,
        )
        copies[node].meta = dict(node.meta)
    return fx.GraphModule(graph_module, graph)


def layer_name(node: fx.Node) -> str:
    """State-dict path of the layer that owns the weight of a convolution or linear `node`."""
    weight = node.args[1]
    if isinstance(weight, fx.Node) and weight.op == "get_attr":
        return str(weight.target).removesuffix(".weight")
    return node.name


def graph_sha256(graph_module: fx.GraphModule) -> str:
    """Digest of a traced graph: its operators in order, their arguments, and all constants."""
    digest = hashlib.sha256()
    for node in graph_module.graph.nodes:
        digest.update(f"{node.op} {node.name} {node.target} {node.args} {node.kwargs}\n".encode())
        if node.op == "get_attr":
            digest.update(tensor_bytes(get_tensor(graph_module, node)))
        if node.op == "call_module":
            digest.update(repr(graph_module.get_submodule(str(node.target))).encode())
    return digest.hexdigest()


def tensor_bytes(tensor: torch.Tensor) -> bytes:
    """Type, shape and values of a tensor, the same wherever it lies."""
    values = tensor.detach().cpu().contiguous()
    return f"{values.dtype} {list(values.shape)}".encode() + values.numpy().tobytes()


@torch.no_grad()
def fold_batch_norm(graph_module: fx.GraphModule) -> int:
    """Fold every BatchNorm that is the only reader of a convolution into it; return how many."""
    folded = 0
    for node in list(graph_module.graph.nodes):
        if node.target is _BATCH_NORM and _is_foldable(node.args[0]):
            _fold(graph_module, node.args[0], node)
            folded += 1
    _finish(graph_module)
    return folded


def drop_layout_copies(graph_module: fx.GraphModule) -> None:
    """Remove `clone`/`contiguous` and checks of types: they mean nothing to a graph of values."""
    for node in list(graph_module.graph.nodes):
        if node.target in (aten.clone.default, aten.contiguous.default, aten.alias.default):
            node.replace_all_uses_with(node.args[0])
        elif node.target is aten._assert_tensor_metadata.default:
            graph_module.graph.erase_node(node)  # it would ask for FP32 in FP16 too
        elif node.target in (aten.view.default, aten._unsafe_view.default):
            node.target = aten.reshape.default  # a view may need the copy that is gone
        elif node.target is aten.add.Tensor and node.args[1] == 0 and _keeps_type(node):
            node.replace_all_uses_with(node.args[0])  # what `sum` starts with
    _finish(graph_module)


def _keeps_type(node: fx.Node) -> bool:
    before = node.args[0]
    return isinstance(before, fx.Node) and before.meta["val"].dtype == node.meta["val"].dtype


def _is_foldable(node: object) -> bool:
    if not isinstance(node, fx.Node) or node.target not in _CONVOLUTIONS or len(node.users) > 1:
        return False
    weight = node.args[1]
    return isinstance(weight, fx.Node) and weight.op == "get_attr" and len(weight.users) == 1


def _fold(graph_module: fx.GraphModule, conv: fx.Node, norm: fx.Node) -> None:
    def read(argument: object, default: float) -> torch.Tensor:
        if isinstance(argument, fx.Node):
            return get_tensor(graph_module, argument).double()
        return torch.tensor(default, dtype=torch.float64)

    gamma, beta = read(norm.args[1], 1.0), read(norm.args[2], 0.0)
    mean, variance = read(norm.args[3], 0.0), read(norm.args[4], 1.0)
    bias = read(conv.args[2] if len(conv.args) > 2 else None, 0.0)
    factor = gamma / torch.sqrt(variance + float(norm.args[6]))  # type: ignore[arg-type]
    weight_path = str(conv.args[1].target)  # type: ignore[union-attr]  # checked by _is_foldable
    weight = graph_module.get_parameter(weight_path)
    scaled = weight.double() * factor.view(-1, *[1] * (weight.ndim - 1))
    set_parameter(graph_module, weight_path, scaled.to(weight.dtype))
    bias_path = _bias_path(graph_module, conv, weight_path)
    _set_bias(graph_module, conv, bias_path, ((bias - mean) * factor + beta).to(weight.dtype))
    result = next(user for user in norm.users if user.args[1] == 0)
    result.replace_all_uses_with(conv)


def _bias_path(graph_module: fx.GraphModule, conv: fx.Node, weight_path: str) -> str:
    """Where the bias of `conv` is or can be: what only `conv` reads, or a free name."""
    bias = conv.args[2] if len(conv.args) > 2 else None
    if isinstance(bias, fx.Node) and bias.op == "get_attr" and len(bias.users) == 1:
        return str(bias.target)
    return free_path(graph_module, weight_path.removesuffix("weight") + "bias")


def _set_bias(graph_module: fx.GraphModule, conv: fx.Node, path: str, bias: torch.Tensor) -> None:
    set_parameter(graph_module, path, bias)
    with graph_module.graph.inserting_before(conv):
        node = graph_module.graph.get_attr(path)
    arguments = list(conv.args)
    arguments[2:3] = [node]
    conv.args = tuple(arguments)


def _finish(graph_module: fx.GraphModule) -> None:
    graph_module.graph.eliminate_dead_code()
    graph_module.delete_all_unused_submodules()
    graph_module.recompile()
