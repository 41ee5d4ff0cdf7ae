"""Lint ONNX text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from reptrt.engines.form import write_form
from reptrt.engines.lint import Finding, lint_file


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """`save(text, opset=19, name=values, ...)` writes ONNX text and its initializers to a file."""

    def saved(text: str, opset: int = 19, **initializers: object) -> Path:
        domains = f'"": {opset}, "com.microsoft": 1, "acme": 1'
        model = onnx.parser.parse_model(f"<ir_version: 9, opset_import: [{domains}]>\n{text}")
        for name, values in initializers.items():
            if isinstance(values, str):  # "form"
                write_form(model, values)
                continue
            if isinstance(values, onnx.TensorProto):
                model.graph.initializer.append(values)
                continue
            array = np.asarray(values)
            array = array.astype(np.float32) if array.dtype == np.float64 else array
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        for index, node in enumerate(model.graph.node):
            node.name = node.name or f"{node.op_type}_{index}"
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.onnx"
        onnx.save(model, path)
        return path

    return saved


@pytest.fixture
def lint(save: Callable[..., Path]) -> Callable[..., list[Finding]]:
    """As `save`, and return the findings."""
    return lambda text, opset=19, **initializers: list(lint_file(save(text, opset, **initializers)))
