"""A recorded graph is written as it is: the file is the one that PyTorch's own tracing gives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import fx, nn

from reptrt.models.card import ModelCard
from reptrt.models.graph import trace, trace_inputs
from reptrt.models.inputs import NetworkInput
from reptrt.models.spec import Preprocess
from reptrt.pipeline.export import export
from reptrt.pipeline.export.program import as_program, is_recorded

IMAGES = (NetworkInput("images", "float32", (3, 8, 8)),)
OPEN = (NetworkInput("images", "float32", (3, 8, 12), smallest=(3, 4, 4), largest=(3, 16, 16)),)
PAIR = (NetworkInput("images", "float32", (3, 8, 8)), NetworkInput("other", "float32", (3, 8, 8)))


class Windows(nn.Module):
    """Reads its sizes, as Swin does: padding and windows of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, c, h, w = x.shape
        x = nn.functional.pad(self.norm(x.permute(0, 2, 3, 1)), (0, 0, 0, 0, 0, 0))
        x = x.view(n, 2, h // 2, 2, w // 2, c).permute(0, 1, 3, 2, 4, 5)
        return x.reshape(n * 4, -1, c).softmax(1).view(n, -1)


class Several(nn.Module):
    """Outputs that are parts of one tensor, the same tensor twice, and a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.weight = nn.Parameter(torch.ones(1, 2))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        left, right = self.conv(x).relu().split(2, 1)
        return left, right, left, self.weight


class Pooled(nn.Module):
    """An operator without an ONNX form, which PyTorch decomposes, behind some that guard the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.adaptive_avg_pool2d(self.conv(x).relu(), 2).flatten(1)


class Grown(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.interpolate(self.conv(x), scale_factor=2.0)


class Joined(nn.Module):
    def forward(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, other], 1)


def write(module: nn.Module, inputs: Sequence[NetworkInput], path: Path) -> onnx.ModelProto:
    made = module.eval()(*(torch.zeros(one.shape(2)) for one in inputs))
    outputs = tuple(f"y{index}" for index in range(len(made) if isinstance(made, tuple) else 1))
    preprocess = Preprocess((8, 8), (0.5,) * 3, (0.2,) * 3)
    card = ModelCard("toy", "generic", preprocess, 0, None, outputs, stated_inputs=tuple(inputs))
    export.export_float(trace_inputs(module, inputs), path, card)
    return onnx.load(path)


def content(proto: onnx.ModelProto) -> list[object]:
    """All of a file but the names that PyTorch's exporter gives, to tensors between nodes and to constants."""
    graph = proto.graph
    named = {one.name for one in (*graph.input, *graph.output)}
    named |= {one.name for one in graph.initializer if "." in one.name}  # paths in the module
    nodes = [
        (one.op_type, {*one.input} & named, [str(each) for each in one.attribute])
        for one in graph.node
    ]
    tensors = [
        ({one.name} & named, numpy_helper.to_array(one).tolist()) for one in graph.initializer
    ]
    return [nodes, tensors, [(one.name, str(one.type)) for one in (*graph.input, *graph.output)]]


@pytest.mark.parametrize(
    ("network", "inputs"),
    [
        pytest.param(Windows(), IMAGES, id="sizes"),
        pytest.param(Several(), IMAGES, id="outputs"),
        pytest.param(Pooled(), IMAGES, id="decomposed"),
        pytest.param(Grown(), OPEN, id="open sides"),
        pytest.param(Joined(), PAIR, id="two inputs"),
    ],
)
def test_a_recorded_graph_gives_the_file_of_a_traced_one(
    network: nn.Module,
    inputs: Sequence[NetworkInput],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorded = write(network, inputs, tmp_path / "recorded.onnx")
    monkeypatch.setattr(export, "is_recorded", lambda _module: False)
    assert content(recorded) == content(write(network, inputs, tmp_path / "traced.onnx"))
    session = onnxruntime.InferenceSession(tmp_path / "recorded.onnx")
    for batch in (1, 3):
        given = {one.name: torch.rand(one.shape(batch)) for one in inputs}
        found = session.run(None, {name: tensor.numpy() for name, tensor in given.items()})
        wanted = network(*given.values())
        wanted = wanted if isinstance(wanted, tuple) else (wanted,)
        for ours, theirs in zip(found, wanted, strict=True):
            np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_open_axes_have_their_names(tmp_path: Path) -> None:
    (image,) = write(Grown(), OPEN, tmp_path / "model.onnx").graph.input
    sides = [side.dim_param or side.dim_value for side in image.type.tensor_type.shape.dim]
    assert sides == ["batch", 3, "height", "width"]


def test_a_function_of_python_has_to_be_traced() -> None:
    module = trace(Pooled().eval(), (8, 8))
    assert is_recorded(module)
    next(node for node in module.graph.nodes if node.op == "call_function").target = torch.relu
    assert not is_recorded(module)


def test_shapes_keep_the_symbol_of_the_batch() -> None:
    program = as_program(trace(Windows().eval(), (8, 8)), [torch.zeros(2, 3, 8, 8)], [{0}])
    (output,) = program.graph.find_nodes(op="output")
    batch, features = output.args[0][0].meta["val"].shape
    assert isinstance(batch, torch.SymInt)
    assert features == 3 * 64


def test_a_graph_that_fixes_its_batch_is_no_program_with_an_open_one() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output((graph.call_function(torch.ops.aten.view.default, (x, [2, 12])),))
    module = fx.GraphModule({}, graph)
    as_program(module, [torch.zeros(2, 3, 4)], [()])
    with pytest.raises(RuntimeError, match=r"axis 0 of the input of shape \(2, 3, 4\)"):
        as_program(module, [torch.zeros(2, 3, 4)], [(0,)])
