"""What TensorRT-RTX says about a file."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path

import pytest

from reptrt.engines.build.builder import BuildOptions, build_engine
from reptrt.engines.build.parse import parse_error
from reptrt.engines.inspection.fusion import Kernel, parse_kernels

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="needs tensorrt_rtx, the only TensorRT on PyPI that builds without a GPU",
)


def refused_by_rtx(path: Path) -> str:
    return parse_error(path, importlib.import_module("tensorrt_rtx"))


def kernels_of(path: Path, gpu: tuple[int, int] = (8, 6)) -> tuple[Kernel, ...]:
    trt = importlib.import_module("tensorrt_rtx")
    result = build_engine(path, path.with_suffix(".engine"), trt, BuildOptions((gpu,)))
    return parse_kernels(result.layers)
