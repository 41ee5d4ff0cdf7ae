"""Sequences of tensors become the tensors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from reptrt.models.onnx_import.file import read_onnx
from reptrt.models.onnx_import.values import open_session
from tests.models.onnx_import.test_islands import kinds, network, weight

AT = "p = SequenceAt(s, first) q = SequenceAt(s, last) "
CASES = {
    "parts of one size": f"s = SplitToSequence<axis = 1>(c, two) {AT} y = Conv(p, k)",
    "parts of stated sizes": f"s = SplitToSequence<axis = -3>(c, sizes) {AT} y = Conv(q, k3)",
    "single channels": "s = SplitToSequence<axis = 1, keepdims = 0>(c) p = SequenceAt(s, last)"
    " u = Unsqueeze(p, axis) y = Conv(u, k1)",
    "a list that grows and shrinks": "e = SequenceEmpty() a = SequenceInsert(e, c) r = Relu(c)"
    " b = SequenceInsert(a, r, first) d = SequenceInsert(b, c, last) g = SequenceErase(d, first)"
    " z = SequenceErase(g) m = ConcatFromSequence<axis = 1>(z) y = Conv(m, k4)",
    "a list that is stacked": "r = Relu(c) s = SequenceConstruct(c, r)"
    " m = ConcatFromSequence<axis = 1, new_axis = 1>(s) t = ReduceMax<axes = [1], keepdims = 0>(m)"
    " n = SequenceLength(s) f = Cast<to = 1>(n) o = Mul(t, f) y = Conv(o, k4)",
}  # fmt: skip
CONSTANTS = (
    weight("k", 2, 2, 1, 1), weight("k3", 2, 3, 1, 1), weight("k1", 2, 1, 1, 1), weight("k4", 2, 4, 1, 1),
    "int64 two = {2}", "int64[2] sizes = {1, 3}", "int64 first = {0}", "int64 last = {-1}", "int64[1] axis = {1}",
)  # fmt: skip


@pytest.mark.parametrize("opset", [11, 17])
@pytest.mark.parametrize("name", CASES)
def test_they_become_their_tensors(name: str, opset: int, tmp_path: Path) -> None:
    body = CASES[name]
    if opset == 11:
        body = body.replace("Unsqueeze(p, axis)", "Unsqueeze<axes = [1]>(p)")
    imported = network(tmp_path, body, *CONSTANTS, opset=opset)
    assert kinds(imported) == []
    assert imported.batch_size is None
    images = np.random.default_rng(0).random((3, 3, 8, 8), np.float32)
    (expected,) = open_session(read_onnx(tmp_path / "m.onnx").proto).run(None, {"x": images})
    torch.testing.assert_close(
        imported.module(torch.from_numpy(images)), torch.from_numpy(expected)
    )


def test_a_place_that_pixels_name_stays(tmp_path: Path) -> None:
    body = "s = SplitToSequence<axis = 1>(c, two) h = ReduceMax<keepdims = 0>(c) t = Sign(h)"
    body += " i = Cast<to = 7>(t) p = SequenceAt(s, i) y = Conv(p, k)"
    imported = network(tmp_path, body, *CONSTANTS, image="float[1,3,8,8] x")
    ((ops, is_tail),) = [kind for kind in kinds(imported) if "SequenceAt" in kind[0]]
    assert is_tail
    assert "SplitToSequence" in ops
