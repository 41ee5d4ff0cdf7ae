"""What is computed of constants stays small."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from reptrt.engines.fusion_rules import infer_sizes as module
from reptrt.engines.fusion_rules.infer_sizes import infer_sizes


def graph(text: str, opset: int = 17, **constants: object) -> onnx.ModelProto:
    model = parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : {opset}]> g (float[N] x) => (float[] y) {{ {text} }}'
    )
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()
    )
    return model


@pytest.mark.parametrize(
    "text",
    [
        "big = ConstantOfShape(n) y = ReduceSum(big)",
        "big = Expand(one, n) y = ReduceSum(big)",
        "big = Tile(one, n) y = ReduceSum(big)",
        "big = Range(zero, many, one_) y = ReduceSum(big)",
    ],
)
@pytest.mark.parametrize("opset", [6, 17])  # 6 has none of them: nobody can tell their sizes
def test_a_constant_that_would_be_large_is_not_computed(text: str, opset: int) -> None:
    size = 1 << 34
    model = graph(
        text, opset, n=np.array([size]), one=np.ones(1, np.float32), zero=np.int64(0), one_=np.int64(1),
        many=np.int64(size),
    )  # fmt: skip
    with patch.object(module, "ReferenceEvaluator") as evaluator:
        infer_sizes(model, model.graph.input)
    assert not evaluator.called


def test_a_small_constant_is_computed() -> None:
    model = graph("big = ConstantOfShape(n) y = ReduceSum(big)", n=np.array([3]))
    known = infer_sizes(model, model.graph.input)
    assert known.values["big"].tolist() == [0.0, 0.0, 0.0]
    assert known.values["y"].tolist() == [0.0]
