"""PyTorch's table of ONNX operators, read once a process."""

from __future__ import annotations

import functools

from torch.onnx._internal.exporter import _registration


@functools.cache
def share_torchlib() -> None:
    """Let all exports of this process use one table of operators.

    `torch.onnx.export` parses the source of its 500 operators again for each export: two thirds of the
    time of a small one (PyTorch 2.14: 0.8 s). A PyTorch that keeps the table elsewhere is left alone.
    """
    apis = getattr(_registration, "onnxscript_apis", None)
    if apis is not None and hasattr(apis, "get_torchlib_ops"):
        apis.get_torchlib_ops = functools.cache(apis.get_torchlib_ops)
