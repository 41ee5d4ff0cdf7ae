"""Whether TensorRT's ONNX parser takes a file; it needs no GPU."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from reptrt.engines.build.builder import network_flags, parse_failure
from reptrt.engines.build.callbacks import BuildLog, create_logger


def parse_error(onnx_path: Path, trt: ModuleType) -> str:
    """Return why the parser of the module `trt` refuses the file, in one line; empty if it parses."""
    trt_logger = create_logger(trt, BuildLog())
    network = trt.Builder(trt_logger).create_network(network_flags(trt))
    parser = trt.OnnxParser(network, trt_logger)
    if parser.parse_from_file(str(onnx_path)):
        return ""
    return parse_failure(onnx_path, parser).removeprefix(f"{onnx_path}: ")
