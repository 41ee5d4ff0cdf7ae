"""Networks go to ONNX and come back as the same function, with names that a reader knows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx
import pytest
import timm
import torch
import torch.nn.functional as F
from onnx import TensorProto, numpy_helper
from torch import nn

from reptrt.models.expand_attention import FUSED
from reptrt.models.graph import layer_name, trace
from reptrt.models.onnx_import.canonical import canonicalize
from reptrt.models.onnx_import.file import read_onnx
from reptrt.models.onnx_import.importer import ImportedNetwork, import_onnx
from reptrt.models.task import list_outputs
from tests.onnx_files import (
    SIDE,
    ChannelsLast,
    Detector,
    Plain,
    Segmenter,
    from_text,
    seeded,
    write_onnx,
)

HEAD = '<ir_version: 8, opset_import: ["": 17]>'


def _import(path: Path) -> ImportedNetwork:
    file = read_onnx(path)
    return import_onnx(file, file.image_size(None))


def _vit() -> nn.Module:
    return timm.models.VisionTransformer(
        img_size=SIDE, patch_size=8, embed_dim=32, depth=1, num_heads=2, num_classes=5
    )


class _Resampled(nn.Module):
    """A grid for one image, which GridSample does not repeat."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.head = nn.Conv2d(4, 2, 1)
        self.grid = nn.Parameter(torch.rand(1, 8, 8, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.grid_sample(self.stem(x), self.grid, align_corners=False))


def _assert_same(network: ImportedNetwork, reference: nn.Module, batch: int = 3) -> None:
    images = torch.rand(batch, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = list_outputs(reference(images))
        found = list_outputs(network.module(images))
    for actual, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-5)


def _layers(network: ImportedNetwork) -> list[str]:
    graph = trace(network.module, (SIDE, SIDE), batch_size=network.batch_size).graph
    kinds = ("conv2d", "linear")
    return [layer_name(node) for node in graph.nodes if node.name.partition("_")[0] in kinds]


@pytest.mark.parametrize(
    "options",
    [{}, {"dynamic": False}, {"opset": 11}],
    ids=["open-batch", "batch-1", "opset-11"],
)
@pytest.mark.parametrize("factory", [Plain, Detector, Segmenter])
def test_convolutional_networks_come_back_with_an_open_batch(
    factory: type[nn.Module], options: Mapping[str, bool | int], tmp_path: Path
) -> None:
    reference = seeded(factory)
    network = _import(write_onnx(reference, tmp_path / "m.onnx", **options))
    assert network.batch_size is None
    assert network.relative_error < 1e-5
    _assert_same(network, reference)
    assert _layers(network)  # torch.export records it for any batch


def test_what_the_newer_exporter_writes_comes_back(tmp_path: Path) -> None:
    reference = seeded(Plain)
    network = _import(write_onnx(reference, tmp_path / "m.onnx", dynamo=True))
    assert network.batch_size is None
    _assert_same(network, reference)


def test_a_transformer_comes_back_and_its_class_token_follows_the_batch(tmp_path: Path) -> None:
    reference = seeded(_vit)  # type: ignore[arg-type]  # called as a class would be
    network = _import(write_onnx(reference, tmp_path / "m.onnx"))
    assert network.batch_size is None
    _assert_same(network, reference)
    assert "blocks.0.attn.qkv" in _layers(network)


def test_a_graph_that_takes_one_image_only_keeps_that_batch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reference = seeded(_Resampled)
    network = _import(write_onnx(reference, tmp_path / "m.onnx", dynamic=False))
    assert network.batch_size == 1
    assert "runs on batches of 1 only" in caplog.text
    _assert_same(network, reference, batch=1)


def test_channels_last_input_is_turned(tmp_path: Path) -> None:
    inner = seeded(Plain)
    example = torch.rand(2, SIDE, SIDE, 3)
    path = write_onnx(ChannelsLast(inner).eval(), tmp_path / "m.onnx", example=example)
    assert read_onnx(path).channels_last
    _assert_same(_import(path), inner)


@pytest.mark.parametrize("wide", [TensorProto.FLOAT16, TensorProto.DOUBLE], ids=["half", "double"])
def test_other_floats_become_float32(wide: int, tmp_path: Path) -> None:
    reference = seeded(Plain)
    model = onnx.load(write_onnx(reference, tmp_path / "m.onnx"))
    dtype = onnx.helper.tensor_dtype_to_np_dtype(wide)
    tensors = [*model.graph.initializer]
    tensors += [a.t for node in model.graph.node for a in node.attribute if a.HasField("t")]
    for tensor in tensors:
        if tensor.data_type == TensorProto.FLOAT:
            values = numpy_helper.to_array(tensor).astype(dtype)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = wide
    onnx.save(model, tmp_path / "m.onnx")
    network = _import(tmp_path / "m.onnx")
    assert {p.dtype for p in network.module.parameters()} == {torch.float32}
    images = torch.rand(2, 3, SIDE, SIDE)
    with torch.no_grad():
        torch.testing.assert_close(network.module(images), reference(images), rtol=2e-2, atol=2e-3)


def test_layers_are_called_after_their_weights_and_stay_so(tmp_path: Path) -> None:
    path = write_onnx(seeded(Detector), tmp_path / "m.onnx")
    names = _layers(_import(path))
    assert names == _layers(_import(path))
    assert set(names) == {"stem.0", "stem.2", "down", "lateral", "heads.0", "heads.1"}


def test_unnamed_odd_and_repeated_node_names_become_paths(tmp_path: Path) -> None:
    model = onnx.load(write_onnx(seeded(Detector), tmp_path / "m.onnx"))
    names = iter(["", "a", "a", "a.b", "forward", "0/class", "é x"])
    for node in model.graph.node:
        node.name = next(names, "")
    for tensor in model.graph.initializer:
        for node in model.graph.node:
            node.input[:] = [f"w{i}" if i == tensor.name else i for i in node.input]
        tensor.name = f"w{tensor.name}"
    for index, tensor in enumerate(model.graph.initializer):
        for node in model.graph.node:
            node.input[:] = [f"n{index}" if i == tensor.name else i for i in node.input]
        tensor.name = f"n{index}"
    onnx.save(model, tmp_path / "m.onnx")
    network = _import(tmp_path / "m.onnx")
    layers = _layers(network)
    assert len(set(layers)) == len(layers) == 6
    _assert_same(network, seeded(Detector))


def test_output_names_of_the_file_stay(tmp_path: Path) -> None:
    path = from_text(
        f"""{HEAD} net (float[N,3,8,8] x) => (float[N,3,8,8] high, float[N,3,8,8] low)
        {{ low = Neg(x) high = Relu(x) }}""",
        tmp_path / "m.onnx",
    )
    network = _import(path)
    assert network.outputs == ("high", "low")
    high, low = network.module(torch.full((1, 3, 8, 8), 2.0))
    assert (float(high.max()), float(low.max())) == (2.0, -2.0)


WEIGHT = "float[4,3,3,3] w = {" + ",".join(str(round(i % 7 / 7, 2)) for i in range(108)) + "}"


@pytest.mark.parametrize(
    "body",
    [
        'y = Conv<auto_pad = "SAME_UPPER", strides = [2, 2]>(x, w)',
        'y = Conv<auto_pad = "SAME_LOWER", strides = [2, 2]>(x, w)',
        "y = Conv<pads = [0, 1, 2, 0]>(x, w)",
        'y = MaxPool<kernel_shape = [3, 3], auto_pad = "SAME_UPPER", strides = [2, 2]>(x)',
        "i = Identity(w) c = Cast<to = 1>(i) y = Conv<pads = [1, 1, 1, 1]>(x, c)",
        "t = Transpose<perm = [0, 1, 3, 2]>(w) y = Conv(x, t)",
        'h = HardSwish(x) y = HardSigmoid<alpha = 0.2, beta = 0.5>(h)',
        "s = Shape(x) y = Reshape(x, s)",
        "s = Constant<value_ints = [1, 3, 72]>() y = Reshape(x, s)",
        'e = Constant<value_floats = [1.0, 1.0, 2.0, 2.0]>() y = Resize<mode = "linear">(x, , e)',
        'e = Constant<value_floats = [1.0, 1.0, 2.0, 2.0]>() y = Resize<mode = "nearest">(x, , e)',
        "a = Constant<value_ints = [2, 3]>() y = ReduceL2<keepdims = 0, axes = [2, 3]>(x)",
        "b = Constant<value_ints = [7]>() e = Constant<value_ints = [-9223372036854775807]>()"
        " a = Constant<value_ints = [3]>() t = Constant<value_ints = [-1]>() y = Slice(x, b, e, a, t)",
        "y = Softmax<axis = 1>(x)",
        "z = Constant<value_ints = [0, 2]>() y = Gather<axis = 1>(x, z)",
        "y, m = Dropout(x)",
    ],
)  # fmt: skip
def test_operators_compute_what_onnx_runtime_does(body: str, tmp_path: Path) -> None:
    constant = f"<{WEIGHT}>" if "w)" in body or "(x, w" in body else ""
    text = f"{HEAD} net (float[1,3,8,9] x) => (float y) {constant} {{ {body} }}"
    network = _import(from_text(text, tmp_path / "m.onnx"))
    assert network.batch_size is None
    assert network.islands == ()
    assert network.relative_error < 1e-5


@pytest.mark.parametrize("what", ["LogSumExp", "LogSum", "SumSquare", "L1", "Mean", "Min"])
@pytest.mark.parametrize(("opset", "axes"), [(18, ""), (13, "axes = [1, -1],")])
def test_reductions_are_imported(what: str, opset: int, axes: str, tmp_path: Path) -> None:
    read = "(e, a)" if opset >= 18 else "(e)"
    text = f"""<ir_version: 8, opset_import: ["": {opset}]> net (float[N,3,8,9] x) => (float y)
        <int64[2] a = {{1, -1}}> {{ e = Exp(x) y = Reduce{what}<{axes} keepdims = 0>{read} }}"""
    network = _import(from_text(text, tmp_path / "m.onnx"))
    assert (network.batch_size, network.islands) == (None, ())
    assert network.relative_error < 1e-5


@pytest.mark.parametrize(
    "call",
    ["<>(x, x, x)", "<scale = 0.7, is_causal = 1>(x, x, x)", "<>(x, x, x, b)", "<>(x, x, x, p)"],
    ids=["plain", "causal", "constant mask", "mask of pixels"],
)
def test_fused_attention_stays_one_operator(call: str, tmp_path: Path) -> None:
    bias = ", ".join(str(i % 5) for i in range(64))
    text = f"""<ir_version: 10, opset_import: ["": 23]> net (float[1,3,8,8] x) => (float y)
        <float[8,8] b = {{{bias}}}> {{ p = Add(x, b) y = Attention {call} }}"""
    network = _import(from_text(text.replace("<>", ""), tmp_path / "m.onnx"))
    assert network.relative_error < 1e-5
    graph = trace(network.module, (8, 8)).graph
    assert [node.target for node in graph.nodes].count(FUSED) == 1


def test_what_follows_a_shape_that_depends_on_pixels_is_left_to_onnx_runtime(
    tmp_path: Path,
) -> None:
    body = "n = Cast<to = 7>(x) s = Constant<value_ints = [1]>() m = ReduceMax<keepdims = 0>(n)"
    body += " q = Reshape(m, s) u = Constant<value_ints = [-1]>() c = Concat<axis = 0>(u, q)"
    text = f"{HEAD} net (float[1,3,8,8] x) => (float y) {{ {body} y = Reshape(x, c) }}"
    tail = _import(from_text(text, tmp_path / "m.onnx")).tail
    assert tail is not None
    assert tail.note.op_types == ("Reshape",)


def test_the_first_node_that_differs_is_named_and_becomes_an_island(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_onnx(seeded(Plain), tmp_path / "m.onnx")
    monkeypatch.setattr(nn.Hardsigmoid, "forward", lambda self, x: torch.sigmoid(x))
    network = _import(path)
    assert [note.nodes for note in network.islands] == [("/HardSigmoid",)]
    assert network.relative_error < 1e-5
    assert "/HardSigmoid: PyTorch computes something else than ONNX Runtime" in caplog.text


@pytest.mark.parametrize(
    ("kind", "sides", "perm", "opset"),
    [("float", "3,16,24", "0, 1, 2", 17), ("uint8", "16,24,3", "2, 0, 1", 17),
     ("float", "16,24,3", "2, 0, 1", 11), ("uint8", "h,w,3", "2, 0, 1", 17)],
)  # fmt: skip
def test_a_picture_without_a_batch_gets_one(
    kind: str, sides: str, perm: str, opset: int, tmp_path: Path
) -> None:
    text = f"""<ir_version: 8, opset_import: ["": {opset}]> net ({kind}[{sides}] x) => (float y)
        {{ f = Cast<to = 1>(x) t = Transpose<perm = [{perm}]>(f)
        y = ReduceMean<axes = [1], keepdims = 0>(t) }}"""
    file = read_onnx(from_text(text, tmp_path / "m.onnx"))
    assert file.is_of_one_image
    network = import_onnx(file, (16, 24))
    assert network.batch_size == 1
    (images,) = network.inputs
    assert images.shape(1) == (1, 3, 16, 24)
    values = torch.rand(1, 3, 16, 24) * 255
    if kind == "uint8":
        values = values.round()
    torch.testing.assert_close(network.module(values), values[0].mean(1))


@pytest.mark.parametrize(
    ("body", "stays"),
    [
        ("f = Cast<to = 1>(x) y = Transpose<perm = [0, 3, 1, 2]>(f)", False),
        ("t = Transpose<perm = [0, 3, 1, 2]>(x) y = Cast<to = 1>(t)", False),
        ("i = Cast<to = 6>(x) f = Cast<to = 1>(i) y = Transpose<perm = [0, 3, 1, 2]>(f)", False),
        ("t = Transpose<perm = [0, 3, 1, 2]>(x) m = Max(t, low) y = Cast<to = 1>(m)", True),
    ],
)
def test_what_casts_or_moves_pixels_in_uint8_does_so_in_float(
    body: str, stays: bool, tmp_path: Path
) -> None:
    text = f"""{HEAD} net (uint8[N,16,24,3] x) => (float y) <uint8 low = {{0}}> {{ {body} }}"""
    file = read_onnx(from_text(text, tmp_path / "m.onnx"))
    nodes = canonicalize(file, file.network_inputs((16, 24))).graph.nodes
    casts = [node for node in nodes if node.op == "Cast" and node.attrs["to"] == TensorProto.UINT8]
    assert bool(casts) is stays
    values = (torch.rand(2, 3, 16, 24) * 255).round()
    torch.testing.assert_close(import_onnx(file, (16, 24)).module(values), values)


@pytest.mark.parametrize("sides", ["1,1024,3", "N,1024,3", "3,8,8", "16,24,5"])
def test_other_inputs_of_three_axes_stay_as_they_are(sides: str, tmp_path: Path) -> None:
    text = f"{HEAD} net (float[{sides}] x) => (float y) {{ y = Relu(x) }}"
    assert read_onnx(from_text(text, tmp_path / "m.onnx")).picture is None


def test_an_output_that_no_pixel_changes_is_still_one(tmp_path: Path) -> None:
    text = f"""{HEAD} net (float[N,3,8,8] x) => (float y, float[2] anchors)
        <float[2] a = {{3, 4}}> {{ anchors = Neg(a) m = ReduceSum<keepdims = 1>(anchors) y = Mul(x, m) }}"""
    network = _import(from_text(text, tmp_path / "m.onnx"))
    assert network.tail is not None
    assert network.tail.outputs == ("y", "anchors")
    images = torch.rand(2, 3, 8, 8)
    found = network.module(images)
    values = [found] if isinstance(found, torch.Tensor) else list(found)
    product, anchors = network.tail.run([images], values)
    torch.testing.assert_close(product, images * -7)
    assert anchors.tolist() == [-3, -4]
