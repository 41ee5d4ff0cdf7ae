"""An open first axis counts samples where it can, else the rows of one sample, as the data has them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from reptrt.models.onnx_import.file import read_onnx
from reptrt.models.onnx_import.importer import import_onnx
from reptrt.models.onnx_import.values import open_session
from tests.models.onnx_import.test_islands import weight
from tests.onnx_files import from_text

CLOUD = f"""<ir_version: 8, opset_import: ["": 17]> net (float[P,5,3] points, int64[P,1] places) => (float y)
    <{weight("w", 3, 4)}, {weight("k", 2, 4, 3, 3)}, float[16,4] none = {{{", ".join(["0"] * 64)}}},
    int64[4] map = {{1, 4, 4, 4}}> {{ h = MatMul(points, w) p = ReduceMax<axes = [1], keepdims = 0>(h)
    s = ScatterND(none, places, p) t = Transpose(s) m = Reshape(t, map) y = Conv(m, k) }}"""


def test_rows_of_one_sample_stay_together(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = from_text(CLOUD, tmp_path / "cloud.onnx")
    rng = np.random.default_rng(0)
    feed = {"points": rng.random((6, 5, 3), np.float32), "places": rng.permutation(16)[:6, None]}
    imported = import_onnx(read_onnx(path), None, feed)
    assert [(one.batched, one.sides) for one in imported.inputs] == [
        (False, (6, 5, 3)),
        (False, (6, 1)),
    ]
    assert "points: float32 [6, 5, 3]; places: int64 [6, 1]" in caplog.text
    found = imported.module(*map(torch.from_numpy, feed.values()))
    (expected,) = open_session(read_onnx(path).proto).run(None, feed)
    torch.testing.assert_close(found, torch.from_numpy(expected))


def test_a_batch_stays_one_however_many_samples_the_data_has(tmp_path: Path) -> None:
    text = f"""<ir_version: 8, opset_import: ["": 17]> net (float[N,5] x) => (float y)
        <{weight("w", 5, 4)}> {{ y = MatMul(x, w) }}"""
    file = read_onnx(from_text(text, tmp_path / "net.onnx"))
    imported = import_onnx(file, None, {"x": np.zeros((6, 5), np.float32)})
    assert imported.inputs[0].batched
    assert imported.batch_size is None
