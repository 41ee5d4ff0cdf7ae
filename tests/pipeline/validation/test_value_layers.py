from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from reptrt.engines.outputs.snr import SignalNoise
from reptrt.pipeline.validation.value_layers import ChannelNoise, find_value_layers

ATTENTION = """
    <ir_version: 8, opset_import: ["": 17]>
    graph (float[1, 4, 6] x) => (float[1, 4, 6] y)
    <float[6, 18] qkv_w, float[18] qkv_b, float[6, 6] proj_w, int64[3] parts = {6, 6, 6}>
    {
        [qkv] product = MatMul(x, qkv_w)
        [qkv_bias] made = Add(qkv_b, product)
        [split] q, k, v = Split<axis = 2>(made, parts)
        [transpose] kt = Transpose<perm = [0, 2, 1]>(k)
        [scores] s = MatMul(q, kt)
        [softmax] p = Softmax<axis = -1>(s)
        [mix] mixed = MatMul(p, v)
        [proj] y = MatMul(mixed, proj_w)
    }
"""


def file_of(text: str, folder: Path) -> Path:
    model = onnx.parser.parse_model(text)
    shapes = {"qkv_w": (6, 18), "qkv_b": (18,), "proj_w": (6, 6)}
    for name, shape in shapes.items():
        model.graph.initializer.append(
            onnx.numpy_helper.from_array(np.ones(shape, np.float32), name)
        )
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def test_the_linear_that_makes_the_values_is_found_behind_its_bias_and_layout(
    tmp_path: Path,
) -> None:
    assert find_value_layers(file_of(ATTENTION, tmp_path)) == {"qkv"}


def test_values_that_an_activation_makes_are_of_no_linear(tmp_path: Path) -> None:
    text = ATTENTION.replace("MatMul(p, v)", "MatMul(p, r)").replace(
        "[mix]", "[relu] r = Relu(v)\n        [mix]"
    )
    assert find_value_layers(file_of(text, tmp_path)) == frozenset()


def two_outputs(noise: float) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    y = generator.normal(size=(2, 500, 4)).astype(np.float32)
    return y, y + noise * generator.normal(size=y.shape).astype(np.float32)


def test_units_of_a_channel_do_not_count_and_its_noise_does() -> None:
    expected, found = two_outputs(0.01)
    plain, moved = SignalNoise(), ChannelNoise()
    units, offsets = np.float32([0.1, 1, -3, 40]), np.float32([0, 2, -1, 5])
    for y, q in zip(expected, found, strict=True):  # batch by batch
        plain.update(y, q)
        moved.update(y[None], (q * units + offsets)[None])
    assert plain.snr_db == pytest.approx(40, abs=0.3)
    assert moved.snr_db == pytest.approx(plain.snr_db, abs=0.1)


def test_a_channel_that_says_nothing_is_all_noise_and_a_dead_one_harmless() -> None:
    y, q = two_outputs(0.0)
    q[..., 0] = 7
    y[..., 3] = q[..., 3] = 0
    noise = ChannelNoise()
    noise.update(y, q)
    expected = 10 * np.log10((y**2).sum() / ((y[..., 0] - y[..., 0].mean()) ** 2).sum())
    assert noise.snr_db == pytest.approx(expected, abs=0.01)


def test_what_is_not_finite_is_said() -> None:
    y, q = two_outputs(0.1)
    q[0, 0, 0] = np.inf
    noise = ChannelNoise()
    noise.update(y, q)
    assert not noise.is_finite
    assert noise.snr_db == -np.inf
