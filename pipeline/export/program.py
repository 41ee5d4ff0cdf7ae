"""A recorded graph as PyTorch's `ExportedProgram`, without tracing it once more.

`torch.onnx.export` traces any module anew, through every layer of PyTorch's dispatcher: that is most of its time.
Graphs of this project are ATen operators already (`reptrt.models.graph.trace`). What they lack are shapes of
their tensors, and weights that are inputs.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export.exported_program import ModuleCallEntry, ModuleCallSignature
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    TensorArgument,
)
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    ShapeEnv,
    StatelessSymbolicContext,
    is_concrete_int,
)
from torch.fx.passes.fake_tensor_prop import FakeTensorProp
from torch.utils import _pytree as pytree

from reptrt.models.parameters import get_tensor

_BATCH = 0


def is_recorded(module: fx.GraphModule) -> bool:
    """Whether nodes of `module` are operators and tensors: what a function of Python does has to be traced."""
    return all(
        node.op in ("placeholder", "get_attr", "output") or _is_operator(node.target)
        for node in module.graph.nodes
    )


def _is_operator(target: object) -> bool:
    return isinstance(target, OpOverload) or getattr(target, "__module__", "") == "_operator"


def as_program(
    module: fx.GraphModule, examples: Sequence[torch.Tensor], open_axes: Sequence[Collection[int]]
) -> torch.export.ExportedProgram:
    """The program of a recorded graph.

    Args:
        module: of which `is_recorded` holds; its nodes learn the shapes of what they make.
        examples: a tensor for each input.
        open_axes: of each input, the axes whose sizes stay symbols; axis 0 is the batch, the same in all.

    Raises:
        RuntimeError: an operator fixes such a size.
    """
    symbols = ShapeEnv()
    mode = FakeTensorMode(shape_env=symbols, allow_non_fake_inputs=True)
    inputs = [
        mode.from_tensor(example, symbolic_context=_sides(example, axes))
        for example, axes in zip(examples, open_axes, strict=True)
    ]
    with torch.no_grad(), enable_python_dispatcher():
        FakeTensorProp(module, mode).propagate_dont_convert_inputs(*inputs)
    for example, symbolic, axes in zip(examples, inputs, open_axes, strict=True):
        closed = [axis for axis in axes if is_concrete_int(symbolic.shape[axis])]
        if closed:
            raise RuntimeError(
                f"an operator fixes axis {closed[0]} of the input of shape {tuple(example.shape)}, which is to stay open"
            )
    symbols.guards.clear()  # they speak of inputs by names that the program does not have
    graph, read, tensors = _lift_tensors(module)
    (output,) = graph.find_nodes(op="output")
    made = [
        OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(node.name), target=None)
        for node in output.args[0]
    ]
    called_with: tuple[tuple[Any, ...], dict[str, Any]] = (tuple(examples), {})
    given, returned = pytree.tree_structure(called_with), pytree.tree_structure(tuple(made))
    whole = ModuleCallEntry("", ModuleCallSignature([], [], given, returned))
    signature = ExportGraphSignature(read, made)
    return torch.export.ExportedProgram(module, graph, signature, tensors, {}, [whole], called_with)


def _sides(example: torch.Tensor, open_axes: Collection[int]) -> StatelessSymbolicContext[Any, Any]:
    """A symbol for each open axis; batches of all inputs have the same size, so they share one (DUCK)."""
    kinds = {True: DimDynamic.DYNAMIC, False: DimDynamic.STATIC}
    sizes = [kinds[axis in open_axes] for axis in range(example.ndim)]
    if _BATCH in open_axes:
        sizes[_BATCH] = DimDynamic.DUCK
    return StatelessSymbolicContext(dynamic_sizes=sizes)


def _lift_tensors(
    module: fx.GraphModule,
) -> tuple[fx.Graph, list[InputSpec], dict[str, torch.Tensor]]:
    """Copy of the graph whose first inputs are its tensors; what each input is, and the tensors by path."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    lifted: dict[str, fx.Node] = {}
    tensors: dict[str, torch.Tensor] = {}
    inputs: list[InputSpec] = []
    for node in module.graph.find_nodes(op="get_attr"):
        path = str(node.target)
        if path not in lifted:
            lifted[path] = graph.placeholder(f"tensor_{len(lifted)}")
            lifted[path].meta["val"] = node.meta["val"]
            tensors[path] = get_tensor(module, node)
            is_parameter = isinstance(tensors[path], nn.Parameter)
            kind = InputKind.PARAMETER if is_parameter else InputKind.BUFFER
            persistent = None if is_parameter else True
            argument = TensorArgument(lifted[path].name)
            inputs.append(InputSpec(kind, argument, path, persistent))
        copies[node] = lifted[path]
    for node in module.graph.nodes:
        if node.op != "get_attr":
            copies[node] = graph.node_copy(node, copies.__getitem__)
        if node.op == "placeholder":
            copies[node].target = copies[node].name  # as decompositions will call it
            argument = TensorArgument(copies[node].name)
            inputs.append(InputSpec(InputKind.USER_INPUT, argument, target=None))
    return graph, inputs, tensors
