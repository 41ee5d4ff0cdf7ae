"""Our runners in Polygraphy's hands."""

from __future__ import annotations

import numpy as np
import pytest
from polygraphy.comparator import Comparator
from polygraphy.exception import PolygraphyException
from polygraphy.logger import G_LOGGER

from reptrt.engines.runtime.polygraphy_runner import PolygraphyRunner
from reptrt.engines.runtime.runners import ModelFileError, OnnxRuntimeRunner

FEED = {"images": np.full((1, 3, 16, 16), 0.25, np.float32)}


@pytest.fixture(autouse=True)
def quiet():
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        yield


def test_polygraphy_compares_two_of_our_runners_and_times_them(mixed_onnx):
    path = mixed_onnx()
    pair = [
        OnnxRuntimeRunner(path, name="optimized"),
        OnnxRuntimeRunner(path, optimize=False, name="exact"),
    ]
    results = Comparator.run(list(map(PolygraphyRunner, pair)), data_loader=[FEED])
    assert list(results.keys()) == ["optimized", "exact"]
    for runner, (_, iterations) in zip(pair, results.items(), strict=True):
        (output,) = iterations[0].values()
        with runner:
            (expected,) = runner.infer(FEED).values()
        np.testing.assert_array_equal(output, expected)
        assert iterations[0].runtime > 0


def test_an_open_batch_is_open_for_polygraphy_too(mixed_onnx):
    with PolygraphyRunner(OnnxRuntimeRunner(mixed_onnx(batch="N"))) as runner:
        dtype, shape = runner.get_input_metadata(use_numpy_dtypes=False)["images"]
        assert tuple(shape) == (None, 3, 16, 16)
        assert dtype.numpy() == np.float32
        assert runner.infer({"images": np.zeros((2, 3, 16, 16), np.float32)})


@pytest.mark.parametrize(
    "feed",
    [{}, {"images": np.zeros((1, 3, 8, 8), np.float32)}, {"images": np.zeros((1, 3, 16, 16))}],
)
def test_a_feed_that_does_not_fit_is_refused(mixed_onnx, feed):
    runner = PolygraphyRunner(OnnxRuntimeRunner(mixed_onnx()))
    with runner, pytest.raises(PolygraphyException):
        runner.infer(feed)


def test_a_file_that_does_not_load_raises_our_error_and_leaves_the_runner_inactive(tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"not onnx")
    runner = PolygraphyRunner(OnnxRuntimeRunner(tmp_path / "bad.onnx"))
    with pytest.raises(ModelFileError):
        runner.activate()
    assert not runner.is_active
