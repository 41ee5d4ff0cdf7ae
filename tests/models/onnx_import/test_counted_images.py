"""What grows with the number of images stays computed, repeated or open."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.models.onnx_import.test_islands import BEHIND, GATES, SEQUENCE, network, weight

VIEW = """p = GlobalAveragePool(c) f = Reshape(p, all) h = Shape(c) n = Gather(h, zero)
    r = Range(zero, n, one) i = Mul(r, four) u = Unsqueeze(i, k) e = Add(u, o) q = Gather(f, e)"""
COUNTS = "int64 zero = {0}, int64 one = {1}, int64[3] k = {1, 2, 3}, int64 four = {4}, int64[1] all = {-1}"


@pytest.mark.parametrize(("order", "is_whole"), [("0, 1, 2, 3", True), ("1, 0, 2, 3", False)])
def test_a_strided_view_of_a_whole_tensor_is_a_reshape(
    order: str, is_whole: bool, tmp_path: Path
) -> None:
    places = f"int64[1, 4, 1, 1] o = {{{order}}}"
    imported = network(tmp_path, VIEW + BEHIND, COUNTS, places)
    assert imported.batch_size is None
    assert imported.relative_error < 1e-5
    assert (imported.islands == ()) is is_whole


ONE_IMAGE = {
    "a strided view": "p = GlobalAveragePool(c) f = Reshape(p, all) q = Gather(f, o)" + BEHIND,
    "a mask that is looked up by the number of the image": """h = Shape(c) n = Gather(h, zero)
        r = Range(zero, n, one) i = Mul(r, four) u = Unsqueeze(i, k) e = Add(u, o) m = Gather(table, e)
        q = Add(c, m)""" + BEHIND,
    "windows that are expanded": """w1 = Reshape(c, windows) l = ReduceL2<axes = [3]>(w1)
        e = Expand(l, sides) d = Div(w1, e) y = Reshape(d, whole2)""",
    "a size that is no whole multiple": """g = Reshape(c, same) p = MaxPool<kernel_shape = [4, 4], strides = [2, 2]>(g)
        z = Resize<mode = "linear">(p, , , size) y = Add(z, whole)""",
}  # fmt: skip


@pytest.mark.parametrize("name", ONE_IMAGE)
def test_what_is_written_for_one_image_takes_any_number(name: str, tmp_path: Path) -> None:
    constants = (
        COUNTS, "int64[1, 4, 1, 1] o = {0, 1, 2, 3}", "int64[4] size = {1, 4, 5, 5}",
        "int64[4] same = {1, 4, 8, 8}", "int64[4] windows = {4, 4, 2, 8}",
        "int64[4] sides = {4, 4, 2, 8}", "int64[3] whole2 = {1, 16, 16}", weight("table", 4), weight("whole", 1, 1, 5, 5),
    )  # fmt: skip
    imported = network(tmp_path, ONE_IMAGE[name], *constants, image="float[1,3,8,8] x")
    assert (imported.batch_size, imported.islands) == (None, ())
    assert imported.relative_error < 1e-5


def test_what_counts_images_stays_computed(tmp_path: Path) -> None:
    body = (
        """h = Shape(c) n = Gather(h, zero) r = Range(zero, n, one) f = Cast<to = 1>(r)
        u = Unsqueeze(f, k) q = Add(c, u)"""
        + BEHIND
    )
    constants = "int64 zero = {0}, int64 one = {1}, int64[3] k = {1, 2, 3}"
    imported = network(tmp_path, body, constants)
    assert imported.batch_size is None
    assert imported.relative_error < 1e-5
    assert "Range" in imported.islands[0].op_types


def test_what_is_repeated_for_every_image_is_constant_whichever_axis_counts_them(
    tmp_path: Path,
) -> None:
    body = """m = ReduceMean<axes = [2], keepdims = 0>(c) t = Transpose<perm = [1, 0, 2]>(m)
        h = Shape(c) n = Gather(h, zero) s = Concat<axis = 0>(four, n, eight) e = Expand(q, s)
        u = Exp(e) y = Add(t, u)"""
    constants = "int64[1] zero = {0}, int64[1] four = {4}, int64[1] eight = {8}"
    imported = network(tmp_path, body, constants, weight("q", 4, 1, 8))
    assert imported.islands == ()
    assert imported.batch_size is None
    assert imported.relative_error < 1e-5


def test_outputs_in_sequence_order_leave_the_batch_open(tmp_path: Path) -> None:
    imported = network(tmp_path, "y = Transpose<perm = [3, 0, 1, 2]>(c)")
    assert imported.batch_size is None


def test_an_island_for_one_image_keeps_the_batch_of_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    body = SEQUENCE + "o = LSTM<hidden_size = 6>(t, a, bb, , length) y = Identity(o)"
    body = body.replace("[0, 0, -1]", "[8, 1, 32]")
    length = "int32[1] length = {8}"
    imported = network(tmp_path, body, *GATES, length, image="float[1,3,8,8] x")
    assert imported.batch_size == 1
    assert "runs on batches of 1 only" in caplog.text
