"""Loops of known length in front of layers, or with layers in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from tests.models.onnx_import.test_islands import kinds, network, weight

LOOPS = {
    "of three rounds": (
        """y = Loop(three, , c) <body = b (int64 i, bool go, float[b, 4, 8, 8] p) => (bool on, float[b, 4, 8, 8] q)
        { on = Identity(go) q = Conv(p, u) }>""",
        "int64 three = {3}",
    ),
    "with a count of its own": (
        """y, last = Loop(, yes, c, zero) <body = b (int64 i, bool go, float[b, 4, 8, 8] p, int64 n)
            => (bool on, float[b, 4, 8, 8] q, int64 m)
        { m = Add(n, one) on = Less(m, three) q = Conv(p, u) }>""",
        "int64 three = {3}, int64 one = {1}, int64 zero = {0}, bool yes = {1}",
    ),
    "of rows that are joined": (
        """t = Loop(two, yes) <body = b (int64 i, bool go) => (bool on, float[b, 4, 8, 8] q)
        { on = Identity(go) f = Cast<to = 1>(i) q = Add(c, f) }>
        n = Constant<value_ints = [-1, 4, 8, 8]>() r = Reshape(t, n) y = Conv(r, u)""",
        "int64 two = {2}, bool yes = {1}",
    ),
}  # fmt: skip


@pytest.mark.parametrize("opset", [11, 17])
@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_that_no_pixel_counts_becomes_layers(name: str, opset: int, tmp_path: Path) -> None:
    body, constants = LOOPS[name]
    if opset == 11:
        body = body.replace("n = Constant<value_ints = [-1, 4, 8, 8]>()", "n = Identity(four)")
        constants += ", int64[4] four = {-1, 4, 8, 8}"
    imported = network(
        tmp_path, body, constants, weight("u", 4, 4, 1, 1), opset=opset, image="float[1,3,8,8] x"
    )
    assert imported.islands == ()
    images = torch.rand(1, 3, 8, 8)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    (expected,) = session.run(["y"], {"x": images.numpy()})
    found = imported.module(images)
    found = found if isinstance(found, torch.Tensor) else found[0]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-4)


def test_a_loop_that_pixels_end_stays(tmp_path: Path) -> None:
    body = """y = Loop(nine, yes, c) <body = b (int64 i, bool go, float[b, 4, 8, 8] p) => (bool on, float[b, 4, 8, 8] q)
        { q = Conv(p, u) s = ReduceMax<keepdims = 0>(q) on = Less(s, h) }>"""
    constants = "int64 nine = {9}, bool yes = {1}, float h = {1}"
    imported = network(tmp_path, body, constants, weight("u", 4, 4, 1, 1))
    assert kinds(imported) == [(("Loop",), True)]


def test_a_loop_behind_all_layers_stays(tmp_path: Path) -> None:
    body = """d = Conv(c, v) y = Loop(two, , d) <body = b (int64 i, bool go, float[b, 2, 8, 8] p) => (bool on, float[b, 2, 8, 8] q)
        { on = Identity(go) q = Add(p, d) }>"""
    imported = network(tmp_path, body, "int64 two = {2}")
    assert kinds(imported) == [(("Loop",), True)]
