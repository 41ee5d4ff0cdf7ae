"""Whether TensorRT takes an ONNX file; asking its parser needs no GPU."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import onnx

from reptrt.engines.build.builder import is_rtx, network_flags, parse_failure
from reptrt.engines.build.callbacks import BuildLog, create_logger

_NO_KERNEL = {"NonMaxSuppression"}
"""What TensorRT-RTX parses and does not build (1.7; github.com/NVIDIA/TensorRT-RTX issue 5)."""


class Refused(NamedTuple):
    """A node of an ONNX file that TensorRT does not take."""

    name: str
    operator: str


def parse_error(onnx_path: Path, trt: ModuleType) -> str:
    """Return why the parser of the module `trt` refuses the file, in one line; empty if it parses."""
    parser = _parse(onnx_path, trt)
    return "" if parser is None else parse_failure(onnx_path, parser).removeprefix(f"{onnx_path}: ")


def refused_node(onnx_path: Path, trt: ModuleType) -> Refused | None:
    """Return the first node that the module `trt` does not parse, or has no kernel for."""
    parser = _parse(onnx_path, trt)
    if parser is not None:
        error = parser.get_error(0) if parser.num_errors else None
        return Refused(error.node_name(), error.node_operator()) if error is not None else None
    nodes = onnx.load(onnx_path, load_external_data=False).graph.node if is_rtx(trt) else ()
    found = (Refused(node.name, node.op_type) for node in nodes if node.op_type in _NO_KERNEL)
    return next(found, None)


def _parse(onnx_path: Path, trt: ModuleType) -> Any:
    """The parser that refuses the file; None where it parses."""
    trt_logger = create_logger(trt, BuildLog())
    network = trt.Builder(trt_logger).create_network(network_flags(trt))
    parser = trt.OnnxParser(network, trt_logger)
    return None if parser.parse_from_file(str(onnx_path)) else parser
