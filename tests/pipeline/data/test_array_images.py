"""Calibration arrays: read one by one, from `.npy` and `.npz`, and refused with a reason."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from reptrt.models.spec import Preprocess
from reptrt.pipeline.data.datasets import DataError, open_images

PREPROCESS = Preprocess((4, 6), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
PLANES = np.random.default_rng(0).normal(size=(5, 3, 4, 6)).astype(np.float32)
PIXELS = np.random.default_rng(1).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)


def save(path: Path, array: np.ndarray) -> Path:
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        np.savez_compressed(path, images=array, labels=np.arange(len(array)))
    return path


@pytest.mark.parametrize("name", ["images.npy", "images.npz"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4"])
def test_normalized_images_pass_through(tmp_path: Path, name: str, dtype: str) -> None:
    stored = PLANES.astype(dtype)
    images = open_images(save(tmp_path / name, stored), PREPROCESS)
    assert len(images) == 5
    for _ in range(2):
        passed = list(images.batches(2))
        assert [len(batch) for batch in passed] == [2, 2, 1]
        assert all(batch.dtype == np.float32 for batch in passed)
        np.testing.assert_array_equal(np.concatenate(passed), stored.astype(np.float32))


@pytest.mark.parametrize("name", ["images.npy", "images.npz"])
def test_rgb_bytes_are_prepared_like_files(tmp_path: Path, name: str) -> None:
    images = open_images(save(tmp_path / name, PIXELS), PREPROCESS)
    expected = PIXELS.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(next(iter(images.batches(5))), expected)


def test_a_sample_of_an_array_is_ascending_and_repeats_with_its_seed(tmp_path: Path) -> None:
    path = save(
        tmp_path / "images.npz", np.arange(50, dtype=np.float32).repeat(72).reshape(50, 3, 4, 6)
    )
    first = np.concatenate(list(open_images(path, PREPROCESS, limit=8, seed=3).batches(3)))
    again = np.concatenate(list(open_images(path, PREPROCESS, limit=8, seed=3).batches(8)))
    other = np.concatenate(list(open_images(path, PREPROCESS, limit=8, seed=4).batches(8)))
    np.testing.assert_array_equal(first, again)
    assert (np.diff(first[:, 0, 0, 0]) > 0).all()
    assert first.tolist() != other.tolist()


@pytest.mark.parametrize("name", ["images.npy", "images.npz"])
def test_only_the_batch_in_hand_is_in_memory(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / name, np.zeros((100_000, 4, 6, 3), np.uint8))  # 7.2 MB
    tracemalloc.start()
    passes = iter(open_images(path, PREPROCESS).batches(2))
    next(passes)
    next(passes)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (PLANES[:, :, :3], r"float32 \[5, 3, 3, 6\]; needs float \[n, 3, 4, 6\]"),
        (PLANES.transpose(0, 2, 3, 1), r"float32 \[5, 4, 6, 3\]; needs"),
        (PIXELS.transpose(0, 3, 1, 2), r"uint8 \[5, 3, 4, 6\]; needs"),
        (PIXELS.astype(np.int64), r"int64 \[5, 4, 6, 3\]; needs"),
        (PLANES[:0], r"\[0, 3, 4, 6\]; needs"),
        (np.float32(3), r"float32 \[\]; needs"),
        (np.asfortranarray(PLANES), "ascontiguousarray"),
        (np.array([{"a": 1}], dtype=object), "object"),
    ],
)
def test_an_array_of_another_layout_is_refused(
    tmp_path: Path, array: np.ndarray, reason: str
) -> None:
    np.save(tmp_path / "images.npy", array, allow_pickle=True)
    with pytest.raises(DataError, match=reason) as caught:
        open_images(tmp_path / "images.npy", PREPROCESS)
    assert "images.npy" in str(caught.value)


def test_several_arrays_without_one_called_images_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "both.npz", a=PLANES, b=PLANES)
    with pytest.raises(DataError, match="named 'images'; found a, b"):
        open_images(tmp_path / "both.npz", PREPROCESS)


@pytest.mark.parametrize("name", ["images.npy", "images.npz"])
def test_a_truncated_array_is_refused_before_anything_is_read(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / name, PLANES)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=name):
        open_images(path, PREPROCESS)


def test_a_damaged_archive_is_named_when_the_damage_is_reached(tmp_path: Path) -> None:
    path = save(tmp_path / "images.npz", np.random.default_rng(0).normal(size=(400, 3, 4, 6)))
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 64] = bytes(64)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"images\.npz: image \d+ is unreadable"):
        list(open_images(path, PREPROCESS).batches(8))


def test_an_image_with_nan_is_named_by_its_index(tmp_path: Path) -> None:
    broken = PLANES.copy()
    broken[3, 0, 0, 0] = np.nan
    images = open_images(save(tmp_path / "images.npy", broken), PREPROCESS)
    with pytest.raises(DataError, match="image 3 holds NaN"):
        list(images.batches(2))
