"""Operators that no importer knows: islands, their neighbours, their tails, and what comes back."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
import torch

from reptrt.models.graph import trace
from reptrt.models.onnx_import.file import read_onnx
from reptrt.models.onnx_import.importer import ImportedNetwork, import_onnx
from reptrt.models.onnx_import.island_op import is_island
from reptrt.models.onnx_import.islands import group_neighbours
from tests.onnx_files import from_text

HEAD = '<ir_version: 8, opset_import: ["": {opset}]>'


def weight(name: str, *shape: int) -> str:
    values = np.random.default_rng(len(name)).standard_normal(shape).round(2).reshape(-1)
    sides, numbers = ",".join(map(str, shape)), ",".join(f"{value:.2f}" for value in values)
    return f"float[{sides}] {name} = {{{numbers}}}"


CONV, TALL = weight("w", 4, 3, 3, 3), weight("v", 2, 4, 1, 1)


def network(
    tmp_path: Path,
    body: str,
    *constants: str,
    opset: int = 17,
    image: str = "float[N,3,8,8] x",
    outputs: str = "float y",
) -> ImportedNetwork:
    """`c` is a convolution [N, 4, 8, 8] of the image; `body` makes the outputs of it."""
    text = f"""{HEAD.format(opset=opset)} net ({image}) => ({outputs})
        <{", ".join((CONV, TALL, *constants))}> {{
        c = Conv<pads = [1, 1, 1, 1]>(x, w) {body} }}"""
    return import_onnx(read_onnx(from_text(text, tmp_path / "m.onnx")), (8, 8))


def kinds(imported: ImportedNetwork) -> list[tuple[tuple[str, ...], bool]]:
    return [(note.op_types, note.is_tail) for note in imported.islands]


SCALES = "float[4] s = {1, 1, 2, 2}"
GATES = (weight("a", 1, 24, 32), weight("bb", 1, 24, 6))
SEQUENCE = (
    "h = Transpose<perm = [2, 0, 1, 3]>(c) n = Constant<value_ints = [0, 0, -1]>()"
    " t = Reshape(h, n) "
)
BEHIND = " y = Conv(q, v)"
ISLANDS = {
    "LSTM": (SEQUENCE + "o = LSTM<hidden_size = 6>(t, a, bb) y = Identity(o)", GATES, 17),
    "GRU": (
        SEQUENCE + "o = GRU<hidden_size = 8>(t, a, bbb) y = Identity(o)",
        (GATES[0], weight("bbb", 1, 24, 8)),
        17,
    ),
    "GridSample": (
        "g = Conv(c, v) t = Transpose<perm = [0, 2, 3, 1]>(g) q = GridSample(c, t)" + BEHIND, (), 17,
    ),
    "Upsample": ('q = Upsample<mode = "linear">(c, s)' + BEHIND, (SCALES,), 9),
    "Resize": ('q = Resize<mode = "linear">(c, s)' + BEHIND, (SCALES,), 10),
    "MaxPool": ("q = MaxPool<kernel_shape = [2, 2], pads = [0, 0, 1, 1]>(c)" + BEHIND, (), 17),
    "AveragePool": (
        "q = AveragePool<kernel_shape = [2, 2], pads = [0, 0, 1, 1]>(c)" + BEHIND, (), 17,
    ),
    "CumSum": ("q = CumSum<reverse = 1>(c, k)" + BEHIND, ("int64 k = {1}",), 17),
    "ScatterND": (
        "t = Transpose<perm = [1, 0, 2, 3]>(c) u = Gather<axis = 0>(t, k) z = ScatterND(t, j, u)"
        " q = Transpose<perm = [1, 0, 2, 3]>(z)" + BEHIND,
        ("int64[2] k = {3, 0}", "int64[2,1] j = {1, 2}"), 17,
    ),
    "GatherND": (
        "t = Transpose<perm = [1, 0, 2, 3]>(c) z = GatherND(t, j) q = Transpose<perm = [1, 0, 2, 3]>(z)"
        + BEHIND, ("int64[4,1] j = {1, 2, 0, 1}",), 17,
    ),
    "Det": ("d = Det(c) u = Unsqueeze(d, k) q = Mul(c, u)" + BEHIND, ("int64[2] k = {2, 3}",), 17),
}  # fmt: skip


@pytest.mark.parametrize("name", ISLANDS)
def test_an_operator_without_importer_is_an_island_that_computes_the_same(
    name: str, tmp_path: Path
) -> None:
    body, constants, opset = ISLANDS[name]
    imported = network(tmp_path, body, *constants, opset=opset)
    assert kinds(imported) == [((name,), False)]
    assert imported.batch_size is None
    assert imported.relative_error < 1e-5


def test_places_that_count_images_follow_them_in_an_old_file_too(tmp_path: Path) -> None:
    write = "s{0} = Shape({1}) n{0} = Gather(s{0}, zero) r{0} = Range(zero, n{0}, one) i{0} = Unsqueeze(r{0}, last) "
    body = (
        "s = Shape(c) z = ConstantOfShape(s) " + write.format(1, "z") + "f = ScatterND(z, i1, c) "
    )
    body += write.format(2, "f") + "q = ScatterND(f, i2, c)" + BEHIND
    constants = ("int64 zero = {0}", "int64 one = {1}", "int64[1] last = {1}")
    imported = network(tmp_path, body, *constants, opset=13)
    assert imported.batch_size is None
    assert imported.relative_error < 1e-5


IMPORTED = {
    "ConvTranspose SAME": (
        'y = ConvTranspose<auto_pad = "SAME_UPPER", strides = [2, 2]>(c, t)', 17,
        weight("t", 4, 2, 3, 3),
    ),
    "ConvTranspose of a stated size": (
        "y = ConvTranspose<output_shape = [16, 16], strides = [2, 2]>(c, t)", 17,
        weight("t", 4, 2, 3, 3),
    ),
    "ConvTranspose padded at the end": (
        "y = ConvTranspose<pads = [0, 0, 1, 2], strides = [2, 2]>(c, t)", 17,
        weight("t", 4, 2, 3, 3),
    ),
    "MaxPool of TensorFlow": (
        "q = MaxPool<kernel_shape = [3, 3], strides = [2, 2], pads = [0, 0, 1, 1]>(c)" + BEHIND, 17,
    ),
    "AveragePool SAME": (
        'q = AveragePool<kernel_shape = [3, 3], strides = [2, 2], auto_pad = "SAME_UPPER">(c)'
        + BEHIND, 17,
    ),
    "DepthToSpace DCR": ("y = DepthToSpace<blocksize = 2>(c)", 17),
    "DepthToSpace CRD": ('y = DepthToSpace<blocksize = 2, mode = "CRD">(c)', 17),
    "SpaceToDepth": ("y = SpaceToDepth<blocksize = 2>(c)", 17),
    "PRelu [1, C, 1, 1]": ("q = PRelu(c, p)" + BEHIND, 17, weight("p", 1, 4, 1, 1)),
    "PRelu of [N, C]": (
        "g = GlobalMaxPool(c) f = Flatten(g) y = PRelu(f, p)", 17, weight("p", 4),
    ),
    "PRelu [1]": ("q = PRelu(c, p)" + BEHIND, 17, weight("p", 1)),
    "Softmax over three axes": ("y = Softmax<axis = 1>(c)", 11),
    "LogSoftmax over two axes": ("y = LogSoftmax<axis = 2>(c)", 11),
    "CumSum": ("y = CumSum(c, k)", 17, "int64 k = {1}"),
    "LessOrEqual": ("b = LessOrEqual(c, z) q = Where(b, c, z)" + BEHIND, 17, "float z = {0.1}"),
    "GreaterOrEqual": ("b = GreaterOrEqual(c, z) q = Where(b, c, z)" + BEHIND, 18, "float z = {0.1}"),
    "ThresholdedRelu": ("q = ThresholdedRelu<alpha = 0.2>(c)" + BEHIND, 17),
    "LpNormalization": ("y = LpNormalization<axis = 1>(c)", 17),
    "LpNormalization of zeros": ("z = Sub(c, c) y = LpNormalization<axis = 1, p = 1>(z)", 17),
    "Resize to sizes": (
        'q = Resize<mode = "linear", coordinate_transformation_mode = "half_pixel">(c, , , z)'
        + BEHIND, 17, "int64[4] z = {1, 4, 12, 20}",
    ),
    "Reshape with allowzero": ("y = Reshape<allowzero = 1>(c, z)", 17, "int64[2] z = {1, 256}"),
    "Concat with a constant": ("y = Concat<axis = 1>(c, z)", 17, weight("z", 1, 2, 8, 8)),
}  # fmt: skip


@pytest.mark.parametrize("name", IMPORTED)
def test_these_operators_are_imported_with_gradient_and_any_batch(
    name: str, tmp_path: Path
) -> None:
    body, opset, *constants = IMPORTED[name]
    imported = network(
        tmp_path, str(body), *map(str, constants), opset=int(opset), image="float[1,3,8,8] x"
    )
    assert imported.islands == ()
    assert imported.batch_size is None
    assert imported.relative_error < 1e-5


def test_an_island_runs_on_any_batch_in_a_traced_graph_and_in_copies_of_it(tmp_path: Path) -> None:
    body, constants, opset = ISLANDS["GRU"]
    imported = network(tmp_path, body, *constants, opset=opset)
    graph_module = trace(imported.module, (8, 8))
    (island,) = [node for node in graph_module.graph.nodes if is_island(node)]
    images = torch.rand(3, 3, 8, 8)
    expected = imported.module(images)
    assert expected.shape == (8, 1, 3, 8)
    sides = island.meta["val"][0].shape
    assert [side if isinstance(side, int) else "N" for side in sides] == [8, 1, "N", 8]
    for copied in (copy.deepcopy(graph_module), pickle.loads(pickle.dumps(graph_module))):
        torch.testing.assert_close(copied(images), expected)


def test_no_gradient_passes_an_island(tmp_path: Path) -> None:
    imported = network(tmp_path, *[ISLANDS["MaxPool"][0]])
    images = torch.rand(1, 3, 8, 8, requires_grad=True)
    imported.module(images).sum().backward()
    assert images.grad is None or not images.grad.any()


def test_neighbours_merge_unless_another_node_lies_between_them(tmp_path: Path) -> None:
    graph = gs.import_onnx(
        onnx.parser.parse_model(
            f"""{HEAD.format(opset=17)} net (float[1] x) => (float[1] y) {{
            [first] a = Abs(x) [second] b = Abs(a) [between] r = Relu(b)
            [third] c = Add(b, r) [fourth] d = Abs(b) [fifth] y = Add(c, d) }}"""
        )
    )
    groups = group_neighbours(graph, {"first", "second", "third", "fourth", "fifth"})
    assert groups == [["first", "second", "fourth"], ["third", "fifth"]]


def test_several_inputs_and_outputs_of_an_island_keep_their_places(tmp_path: Path) -> None:
    body = (
        "l = Relu(c) d = Det(c) e = Det(l) u = Unsqueeze(d, k) z = Unsqueeze(e, k)"
        " m = Mul(c, u) n = Mul(l, z) q = Sub(m, n)" + BEHIND
    )
    imported = network(tmp_path, body, "int64[2] k = {2, 3}")
    assert [note.op_types for note in imported.islands] == [("Det",), ("Det",)]
    assert imported.relative_error < 1e-5


TAILS = {
    "threshold": ("s = Sigmoid(c) y = Greater(s, h)", "float h = {0.5}", "bool y", ("s",)),
    "top-k": (
        "f = Flatten(c) s = Sigmoid(f) y, i = TopK(s, k)", "int64[1] k = {3}",
        "float y, int64 i", ("s",),
    ),
    "arg-max": ("y = ArgMax<axis = 1>(c)", "float h = {0.5}", "int64 y", ("c",)),
    "scatter": (
        "l = Slice(c, z, o, o) e = Exp(l) r = Reshape(e, n) y = ScatterND(c, j, r)",
        "int64[1] z = {0}, int64[1] o = {1}, int64[1,2] j = {0, 2}, int64[3] n = {1, 8, 8}",
        "float y", ("c", "r"),
    ),
    "what is ready and what is decided": (
        "s = Sigmoid(c) y = Greater(s, h) b = Exp(c)", "float h = {0.5}",
        "float b, bool y", ("b", "s"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TAILS)
def test_the_network_is_cut_in_front_of_what_sorts_selects_or_decides(
    name: str, tmp_path: Path
) -> None:
    body, constants, outputs, cut = TAILS[name]
    image = "float[1,3,8,8] x" if name == "scatter" else "float[N,3,8,8] x"
    imported = network(tmp_path, body, constants, outputs=outputs, image=image)
    tail = imported.tail
    assert tail is not None
    assert set(tail.cut) == set(cut)
    assert imported.relative_error < 1e-5
    images = torch.rand(imported.batch_size or 2, 3, 8, 8)
    returned = imported.module(images)
    values = [returned] if isinstance(returned, torch.Tensor) else list(returned)
    session = _session(tmp_path / "m.onnx")
    expected = session.run(list(tail.outputs), {"x": images.numpy()})
    for found, value in zip(tail.run([images], values), expected, strict=True):
        np.testing.assert_allclose(found.numpy(), value, rtol=1e-5, atol=1e-6)


def test_boxes_that_are_suppressed_in_the_file_are_a_tail(tmp_path: Path) -> None:
    body = (
        "f = Reshape(c, r) b = Sigmoid(f) t = Reshape(c, q) s = Sigmoid(t)"
        " k = NonMaxSuppression(b, s, m, i, h) y = Identity(k)"
    )
    constants = (
        "int64[3] r = {0, -1, 4}, int64[3] q = {0, 4, -1}, int64[1] m = {3}, float[1] i = {0.5},"
        " float[1] h = {0.2}"
    )
    imported = network(tmp_path, body, constants, outputs="int64 y", image="float[1,3,8,8] x")
    assert kinds(imported) == [(("NonMaxSuppression", "Identity"), True)]
    assert imported.tail is not None
    assert set(imported.tail.cut) == {"b", "s"}


def test_how_many_boxes_are_left_is_an_output_of_the_tail(tmp_path: Path) -> None:
    body = (
        "f = Reshape(c, r) b = Sigmoid(f) t = Reshape(c, q) s = Sigmoid(t)"
        " y = NonMaxSuppression(b, s, m, i, h) d = Shape(y) n = Gather(d, z)"
    )
    constants = (
        "int64[3] r = {0, -1, 4}, int64[3] q = {0, 4, -1}, int64[1] m = {3}, float[1] i = {0.5},"
        " float[1] h = {0.2}, int64 z = {0}"
    )
    outputs = "int64[a, b] y, int64 n"
    imported = network(tmp_path, body, constants, outputs=outputs, image="float[1,3,8,8] x")
    assert imported.tail is not None
    assert imported.tail.outputs == ("y", "n")
    images = torch.rand(1, 3, 8, 8)
    rows, count = imported.tail.run([images], list(imported.module(images)))
    assert len(rows) == count > 0


def test_an_if_on_how_many_were_found_is_decided_by_every_image(tmp_path: Path) -> None:
    body = """s = Sigmoid(c) g = Greater(s, h) k = NonZero(g) d = Shape(k) n = Gather(d, one)
        e = Equal(n, zero) y = If(e) <then_branch = t () => (float p) { p = Neg(c) },
                                      else_branch = o () => (float p) { p = Identity(c) }>"""
    constants = "float h = {0.5}, int64 one = {1}, int64 zero = {0}"
    imported = network(tmp_path, body, constants)
    assert imported.tail is not None
    assert "If" in imported.tail.note.op_types


def test_places_of_largest_values_are_left_to_onnx_runtime(tmp_path: Path) -> None:
    body = "m, i = MaxPool<kernel_shape = [2, 2], strides = [1, 1]>(c) r = Relu(m)"
    body += " q = MaxUnpool<kernel_shape = [2, 2], strides = [1, 1]>(r, i)" + BEHIND
    imported = network(tmp_path, body)
    assert kinds(imported) == [(("MaxPool",), False), (("MaxUnpool",), False)]
    assert imported.relative_error < 1e-5


def test_operators_of_onnx_runtimes_own_domain_are_islands(tmp_path: Path) -> None:
    body = "g = GlobalMaxPool(c) f = Flatten(g) q = com.microsoft.CDist<metric = "
    body += '"sqeuclidean">(f, e) y = MatMul(q, z)'
    constants = f"{CONV}, {weight('e', 3, 4)}, {weight('z', 3, 2)}"
    text = f"""<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]>
        net (float[N,3,8,8] x) => (float y) <{constants}> {{
        c = Conv<pads = [1, 1, 1, 1]>(x, w) {body} }}"""
    imported = import_onnx(read_onnx(from_text(text, tmp_path / "m.onnx")), (8, 8))
    assert kinds(imported) == [(("CDist",), False)]
    assert imported.relative_error < 1e-5


def test_an_output_that_is_read_on_and_one_that_is_the_image_keep_their_names(
    tmp_path: Path,
) -> None:
    body = "s = Softmax<axis = 1>(c) p = Identity(s) y = ArgMax<axis = 1>(s) i = Identity(x)"
    imported = network(tmp_path, body, outputs="float p, int64 y, float i")
    assert imported.tail is not None
    assert imported.tail.cut == ("p", "i")
    assert imported.tail.outputs == ("p", "y", "i")


def test_the_cut_is_in_front_of_what_decides_for_the_tail_alone(tmp_path: Path) -> None:
    body = """s = Sigmoid(c) g = Greater(s, h) k = NonZero(g) t = Transpose<perm = [1, 0]>(k)
        e = GatherND(c, t) o = Unsqueeze(e, one) y = MatMul(o, m)"""
    constants = "float h = {0.5}, int64[1] one = {1}, float[1,2] m = {1, 2}"
    imported = network(tmp_path, body, constants)
    assert imported.tail is not None
    assert set(imported.tail.cut) == {"s", "c"}


def test_places_of_equal_values_are_those_of_onnx_runtime(tmp_path: Path) -> None:
    body = (
        """f = Flatten<axis = 2>(c) m, i = TopK(f, k) e = Sub(f, f)
        t = ScatterElements<axis = 1>(e, i, m) r = Reshape(t, n) q = Relu(r)"""
        + BEHIND
    )
    constants = "int64[1] k = {9}, int64[4] n = {1, 4, 8, 8}"
    imported = network(tmp_path, body, constants, image="float[1,3,8,8] x")  # a grey picture too
    assert kinds(imported)[0][0] == ("TopK", "ScatterElements")
    assert imported.relative_error < 1e-5


NEWER = {
    "RMSNormalization": "y = RMSNormalization(c, ones)",
    "Attention that caps its scores": "y = Attention<softcap = 2.0>(c, c, c)",
    "Attention that returns its keys": "y, j, u = Attention(c, c, c)",
    "Attention with its heads in the channels":
        "f = Flatten<axis = 3>(c) n = Constant<value_ints = [0, -1, 8]>() t = Reshape(c, n)"
        " y = Attention<q_num_heads = 2, kv_num_heads = 2>(t, t, t)",
}  # fmt: skip


@pytest.mark.parametrize("name", NEWER)
def test_operators_that_opset_19_lacks_are_written_by_older_ones(name: str, tmp_path: Path) -> None:
    imported = network(tmp_path, NEWER[name], "float[8] ones = {1,1,1,1,2,2,2,2}", opset=23)
    assert imported.relative_error < 1e-5


def test_an_if_whose_condition_reads_a_shape_becomes_its_branch(tmp_path: Path) -> None:
    body = """g = GlobalAveragePool(c) h = Shape(g) i = Gather(h, three) b = Equal(i, one)
        q = If(b) <then_branch = t () => (float p) { p = Squeeze(g, axis) },
                   else_branch = e () => (float p) { p = Identity(g) }>
        y = Flatten(q)"""
    imported = network(tmp_path, body, "int64 three = {3}, int64 one = {1}, int64[1] axis = {3}")
    assert imported.islands == ()
    assert imported.batch_size is None


def test_a_loop_is_left_to_onnx_runtime(tmp_path: Path) -> None:
    body = """y = Loop(three, , c) <body = b (int64 i, bool go, float p) => (bool on, float q)
        { on = Identity(go) q = Add(p, c) }>"""
    imported = network(tmp_path, body, "int64 three = {3}")
    assert kinds(imported) == [(("Loop",), True)]


def _session(path: Path) -> object:
    import onnxruntime

    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
