"""Operate on ONNX text, and compare the model before and after in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime as ort
import pytest

from reptrt.engines.surgery import Pass, run_passes

_NUMPY_TYPES = {1: np.float32, 10: np.float16}


def run(model: onnx.ModelProto, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, dict(feed))


def random_feed(model: onnx.ModelProto, seed: int = 0) -> dict[str, np.ndarray]:
    """Normal values for every input; a symbolic dimension is 2."""
    rng = np.random.default_rng(seed)
    return {
        value.name: rng.normal(
            size=[d.dim_value or 2 for d in value.type.tensor_type.shape.dim]
        ).astype(_NUMPY_TYPES[value.type.tensor_type.elem_type])
        for value in model.graph.input
    }


@dataclass(frozen=True)
class Operated:
    """A model before and after surgery."""

    before: onnx.ModelProto
    after: onnx.ModelProto
    graph: gs.Graph
    changed: dict[str, int]

    @property
    def sites(self) -> int:
        return sum(self.changed.values())

    @property
    def ops(self) -> list[str]:
        return [node.op for node in self.graph.nodes]

    def node(self, op: str) -> gs.Node:
        return next(node for node in self.graph.nodes if node.op == op)

    def outputs(
        self, feed: Mapping[str, np.ndarray] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The first output, before and after."""
        feed = random_feed(self.before) if feed is None else feed
        return run(self.before, feed)[0], run(self.after, feed)[0]


def operate_on(model: onnx.ModelProto, passes: Sequence[Pass]) -> Operated:
    graph = gs.import_onnx(onnx.shape_inference.infer_shapes(model, data_prop=True))
    changed = run_passes(graph, passes)
    after = gs.export_onnx(graph)
    onnx.checker.check_model(after, full_check=True)
    return Operated(model, after, graph, changed)


@pytest.fixture
def parse() -> Callable[..., onnx.ModelProto]:
    """ONNX text (without its header) and initializers by name -> model."""

    def parsed(text: str, opset: int = 19, **initializers: object) -> onnx.ModelProto:
        model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": {opset}]>\n{text}')
        for name, values in initializers.items():
            array = np.asarray(values)
            array = array.astype(np.float32) if array.dtype == np.float64 else array
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        return model

    return parsed


@pytest.fixture
def operate(parse: Callable[..., onnx.ModelProto]) -> Callable[..., Operated]:
    """`operate(surgery_pass, text, opset=19, name=values, ...)` -> Operated."""

    def operated(
        surgery_pass: Pass, text: str, opset: int = 19, **initializers: object
    ) -> Operated:
        return operate_on(parse(text, opset, **initializers), [surgery_pass])

    return operated


@pytest.fixture
def operate_model() -> Callable[[onnx.ModelProto, Sequence[Pass]], Operated]:
    return operate_on


@pytest.fixture
def run_model() -> Callable[[onnx.ModelProto, Mapping[str, np.ndarray]], list[np.ndarray]]:
    return run
