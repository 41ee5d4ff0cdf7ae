"""What PyTorch's ONNX exporter does for each file, and need not.

A PyTorch that has these functions elsewhere is left alone.
"""

from __future__ import annotations

import functools
from typing import Any

from torch import fx
from torch.onnx._internal.exporter import _decomp, _fx_passes, _registration


@functools.cache
def lighten_exporter() -> None:
    """Let all exports of this process read one table of operators, and decompose only what has no ONNX form.

    `torch.onnx.export` parses the source of its 500 operators again for each export (PyTorch 2.14: 0.8 s). Then it
    traces every network once more to decompose operators, those too in which there is nothing to decompose.
    """
    apis = getattr(_registration, "onnxscript_apis", None)
    if apis is not None and hasattr(apis, "get_torchlib_ops"):
        apis.get_torchlib_ops = functools.cache(apis.get_torchlib_ops)
    decompose = getattr(_fx_passes, "decompose_with_registry", None)
    if decompose is not None and hasattr(_decomp, "get_onnx_implemented_overloads"):
        _fx_passes.decompose_with_registry = functools.partial(_decompose_some, decompose)


def _decompose_some(decompose: Any, program: Any, registry: Any) -> Any:
    """`program`, decomposed by PyTorch's own `decompose` where one of its operators has no ONNX form."""
    translated = set(_decomp.get_onnx_implemented_overloads(registry))
    graphs = [
        one.graph for one in program.graph_module.modules() if isinstance(one, fx.GraphModule)
    ]
    called = {node.target for graph in graphs for node in graph.nodes if node.op == "call_function"}
    return program if called <= translated else decompose(program, registry)
