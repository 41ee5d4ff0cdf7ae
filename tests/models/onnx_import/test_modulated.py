"""A weight that an image modulates stays constant: what it is multiplied by goes to what is read and made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from reptrt.models.onnx_import.importer import ImportedNetwork
from reptrt.models.onnx_import.values import open_session
from tests.models.onnx_import.test_islands import network, weight

STYLE = "p = GlobalAveragePool(c) f = Exp(p) s = Reshape(f, ins) h = MatMul(s, mix)"
CONSTANTS = (
    weight("k", 1, 6, 4, 3, 3), weight("kernel", 6, 4, 3, 3), weight("mix", 4, 6), "float half = {0.5}",
    "int64[2] ins = {1, 4}, int64[5] in5 = {1, 1, 4, 1, 1}, int64[4] in4 = {1, 4, 1, 1}",
    "int64[5] out5 = {1, 6, 1, 1, 1}, int64[4] out4 = {6, 1, 1, 1}, int64[4] flat = {6, 4, 3, 3}",
    "int64[3] all = {2, 3, 4}, int64[5] high = {1, 1, 1, 3, 1}, int64[1] first = {0}, int64[1] third = {3}",
    "int64[1] one = {1}, float[6] b = {1, 2, 3, 4, 5, 6}",
)  # fmt: skip
INPUTS = "t = Reshape(s, in5) m = Mul(k, t)"
CONV = "w5 = Reshape(m2, flat) y = Conv<pads = [1, 1, 1, 1]>(c, w5)"
CASES = {
    "StyleGAN's": f"{INPUTS} q = Mul(m, m) r = ReduceSum<keepdims = 0>(q, all) e = Sqrt(r) i = Reciprocal(e)"
    f" d = Reshape(i, out5) m2 = Mul(m, d) {CONV}",
    "divided": f"{INPUTS} e = Exp(h) d = Reshape(e, out5) m2 = Div(m, d) {CONV}",
    "without a demodulation": f"{INPUTS} w5 = Reshape(m, flat) y = Conv(c, w5)",
    "of a computed constant, in four axes": "g = Mul(half, kernel) t = Reshape(s, in4) m = Mul(t, g)"
    " e = Sigmoid(h) d = Reshape(e, out4) m2 = Mul(d, m) y = Conv<strides = [2, 2]>(c, m2)",
}  # fmt: skip
OTHERS = {
    "along a kernel": "n = Slice(s, first, third, one) t = Reshape(n, high) m2 = Mul(k, t)" + CONV,
    "with a bias": f"{INPUTS} w5 = Reshape(m, flat) y = Conv(c, w5, b)",
    "divides": f"t = Reshape(s, in5) a = Abs(k) u = Add(a, half) m2 = Div(t, u) {CONV}",
}


def _import(body: str, tmp_path: Path) -> ImportedNetwork:
    return network(tmp_path, f"{STYLE} {body}", *CONSTANTS, image="float[1,3,8,8] x")


@pytest.mark.parametrize("name", CASES)
def test_its_weight_is_constant_and_every_image_has_its_own_factors(
    name: str, tmp_path: Path
) -> None:
    imported = _import(CASES[name], tmp_path)
    assert imported.batch_size is None
    layers = [part for part in imported.module.modules() if isinstance(part, torch.nn.Conv2d)]
    assert [layer.weight.shape[:2] for layer in layers] == [(4, 3), (6, 4)]
    images = np.random.default_rng(0).random((2, 3, 8, 8), np.float32)
    session = open_session(onnx.load(tmp_path / "m.onnx"))
    alone = [session.run(None, {"x": image[None]})[0] for image in images]
    found = imported.module(torch.from_numpy(images))
    torch.testing.assert_close(found, torch.from_numpy(np.concatenate(alone)))


@pytest.mark.parametrize("name", OTHERS)
def test_other_computed_weights_stay_computed(name: str, tmp_path: Path) -> None:
    imported = _import(OTHERS[name], tmp_path)
    assert imported.batch_size == 1
    assert imported.relative_error < 1e-5
    assert sum(isinstance(part, torch.nn.Conv2d) for part in imported.module.modules()) == 1
