"""Normalizations whose parameters are computed, or repeated for every image, are imported and leave the batch open."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.models.onnx_import.test_islands import network, weight

STYLE = (
    "p = GlobalAveragePool(c) f = Flatten(p) r = Reshape(f, all) s = Exp(r) o = Reshape(c, joined)"
)
APART = " y = Reshape(b, apart)"
VECTORS = [weight(name, 4) for name in ("g4", "be4", "mu44")] + ["float[4] va = {1, 2, 0.5, 3}"]
NAMES = "g4, be4, mu44, va"
REPEAT = """h = Shape(c) n = Gather(h, zero) u = Concat<axis = 0>(n) o = Reshape(c, joined)
    gg = Tile(g4, u) bb = Tile(be4, u) mm = Tile(mu44, u) vv = Tile(va, u)"""
TRAINED = "BatchNormalization<training_mode = 1>"
CASES = {
    "parameters repeated for every image": REPEAT + " b = BatchNormalization(o, gg, bb, mm, vv)",
    "statistics of every image, and a style": f"{STYLE} {REPEAT} b, q, k = {TRAINED}(o, s, r, mm, vv)",
    "a style, statistics of training": STYLE + REPEAT + " b = BatchNormalization(o, s, r, mm, vv)",
}  # fmt: skip
CONSTANTS = """int64[1] zero = {0}, int64[1] all = {-1}, int64[4] joined = {1, -1, 8, 8},
    int64[4] apart = {-1, 4, 8, 8}"""


@pytest.mark.parametrize("name", CASES)
def test_they_are_arithmetic(name: str, tmp_path: Path) -> None:
    body = CASES[name].replace("o = Reshape(c, joined)", "", CASES[name].count("joined") - 1)
    imported = network(tmp_path, body + APART, CONSTANTS, *VECTORS)
    assert imported.islands == ()
    assert imported.batch_size is None
    assert imported.relative_error < 1e-5


@pytest.mark.parametrize("op", ["InstanceNormalization(c, r, r)", f"{TRAINED}(c, r, r, mu44, va)"])
def test_those_of_one_image_are_arithmetic(op: str, tmp_path: Path) -> None:
    outputs = "y, a, d" if op.startswith("Batch") else "y"
    body = f"p = GlobalAveragePool(c) r = Reshape(p, all) {outputs} = {op}"
    imported = network(tmp_path, body, CONSTANTS, *VECTORS, image="float[1,3,8,8] x")
    assert imported.islands == ()
    assert imported.relative_error < 1e-5


def test_statistics_of_a_batch_fix_it(tmp_path: Path) -> None:
    imported = network(tmp_path, f"y, a, d = {TRAINED}(c, {NAMES})", CONSTANTS, *VECTORS)
    assert imported.batch_size == 1
    assert imported.islands == ()
