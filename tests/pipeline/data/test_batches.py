"""Batches are complete, ordered, repeatable and read only as far as they are asked for."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from reptrt.pipeline.data.batches import prepared_batches
from reptrt.pipeline.data.preprocess import DataError, Prepared


def numbered(index: int) -> Prepared:
    return Prepared(np.full((3, 2, 2), index, dtype=np.float32), None, (index, index))


@pytest.mark.parametrize(("count", "batch_size"), [(7, 3), (6, 3), (2, 5), (1, 1)])
def test_every_image_comes_once_in_order_on_every_pass(count: int, batch_size: int) -> None:
    batches = prepared_batches(numbered, count, batch_size)
    for _ in range(2):
        passed = list(batches)
        assert len(passed) == len(batches)
        assert [len(batch.images) for batch in passed[:-1]] == [batch_size] * (len(passed) - 1)
        indices = np.concatenate([batch.indices for batch in passed])
        np.testing.assert_array_equal(indices, np.arange(count))
        shown = np.concatenate([batch.images[:, 0, 0, 0] for batch in passed])
        np.testing.assert_array_equal(shown, np.arange(count))
        assert [size for batch in passed for size in batch.image_sizes] == [
            (index, index) for index in range(count)
        ]


def test_at_most_one_batch_is_decoded_ahead() -> None:
    lock, loaded = threading.Lock(), []

    def load(index: int) -> Prepared:
        with lock:
            loaded.append(index)
        return numbered(index)

    batches = prepared_batches(load, 1000, 4)
    assert loaded == []
    passes = iter(batches)
    next(passes)
    next(passes)
    passes.close()  # type: ignore[attr-defined]
    assert len(loaded) <= 12


def test_a_failure_to_load_reaches_the_caller() -> None:
    def load(index: int) -> Prepared:
        if index == 3:
            raise DataError("third.png: unreadable")
        return numbered(index)

    with pytest.raises(DataError, match=r"third\.png"):
        list(prepared_batches(load, 5, 2))
