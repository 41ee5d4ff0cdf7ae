"""Signal-to-noise ratio and cosine against hand-computed values."""

from __future__ import annotations

import math

import numpy as np
import pytest

from reptrt.engines.outputs.snr import SignalNoise


def measured(reference: object, test: object) -> SignalNoise:
    meter = SignalNoise()
    meter.update(np.array(reference, np.float32), np.array(test, np.float32))
    return meter


def test_snr_and_cosine_of_known_vectors() -> None:
    meter = measured([3.0, 4.0], [3.0, 3.5])
    assert meter.snr_db == pytest.approx(20.0)  # 25 / 0.25
    assert meter.cosine == pytest.approx(23.0 / (5.0 * math.sqrt(21.25)))


def test_batches_add_up_to_the_whole() -> None:
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(10, 3, 4)).astype(np.float32)
    test = reference + rng.normal(scale=0.1, size=reference.shape).astype(np.float32)
    whole, parts = measured(reference, test), SignalNoise()
    for start, stop in ((0, 3), (3, 4), (4, 10)):
        parts.update(reference[start:stop], test[start:stop])
    assert parts.snr_db == pytest.approx(whole.snr_db, rel=1e-12)
    assert parts.cosine == pytest.approx(whole.cosine, rel=1e-12)
    assert whole.snr_db == pytest.approx(20.0, abs=1.0)


@pytest.mark.parametrize(
    ("reference", "test", "snr_db", "cosine"),
    [
        ([1.0, 2.0], [1.0, 2.0], math.inf, 1.0),
        ([0.0, 0.0], [0.0, 0.0], math.inf, 1.0),
        ([0.0, 0.0], [1.0, 0.0], -math.inf, 0.0),
        ([1.0, 0.0], [0.0, 0.0], 0.0, 0.0),
        ([1.0, 2.0], [-1.0, -2.0], 10 * math.log10(0.25), -1.0),
        ([1.0, 2.0], [math.nan, 2.0], -math.inf, 0.0),
        ([1.0, 2.0], [math.inf, 2.0], -math.inf, 0.0),
        ([math.inf, 2.0], [math.inf, 2.0], -math.inf, 0.0),
    ],
)
def test_snr_and_cosine_at_the_edges(
    reference: list[float], test: list[float], snr_db: float, cosine: float
) -> None:
    meter = measured(reference, test)
    assert meter.snr_db == pytest.approx(snr_db)
    assert meter.cosine == pytest.approx(cosine)


def test_small_errors_on_a_large_offset_keep_their_precision() -> None:
    reference = np.full(1_000_000, 1000.0, np.float32)
    meter = SignalNoise()
    meter.update(reference, reference + np.float32(0.0625))
    assert meter.snr_db == pytest.approx(20 * math.log10(16000), rel=1e-9)


def test_outputs_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"reference \(2,\), test \(1,\)"):
        measured([1.0, 2.0], [1.0])
