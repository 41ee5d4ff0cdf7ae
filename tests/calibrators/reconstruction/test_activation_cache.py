from __future__ import annotations

import ctypes
import errno
import gc
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from reptrt.calibrators.reconstruction.activation_cache import ActivationCache, CacheDiskError

MEMORY, DISK = 1 << 30, 0
STATUS = Path("/proc/self/status")
MIB = 1 << 20

each_place = pytest.mark.parametrize("limit", [MEMORY, DISK], ids=["memory", "disk"])


def numbered(num_samples: int, *shape: int) -> torch.Tensor:
    return torch.arange(num_samples * torch.Size(shape).numel()).reshape(-1, *shape).float()


def resident_bytes() -> int:
    line = next(row for row in STATUS.read_text().splitlines() if row.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


def open_files_in(folder: Path) -> list[str]:
    links = [entry.readlink() for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
    return [link.name for link in links if link.parent == folder]


@contextmanager
def files_no_larger_than(num_bytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@each_place
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int8])
def test_what_is_read_is_what_was_written_bit_by_bit(limit: int, dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(0)
    raw = torch.randint(0, 256, (6, 3, 5, 8), generator=random, dtype=torch.uint8)
    samples = raw.view(dtype)  # any bits: negative zeros, denormals, infinities and NaN too
    with ActivationCache(limit) as cache:
        store = cache.allocate(6, samples.shape[1:], dtype)
        store.write(0, samples)
        result = store.read(slice(None))
    assert store.in_memory == (limit == MEMORY)
    assert result.dtype == dtype
    assert torch.equal(result.view(torch.uint8), raw)


@each_place
def test_samples_are_read_in_any_order_with_repeats(limit: int) -> None:
    samples = numbered(8, 2, 3)
    with ActivationCache(limit) as cache:
        store = cache.allocate(8, [2, 3])
        store.write(0, samples)
        for indices in ([7, 0, 3], [2, 2, 3, 4, 1], [5], []):
            rows = torch.tensor(indices, dtype=torch.int64)
            assert torch.equal(store.read(rows), samples[rows]), indices
        for part in (slice(None), slice(2, 5), slice(-2, None), slice(1, 8, 3), slice(4, 4)):
            assert torch.equal(store.read(part), samples[part]), part


@each_place
def test_samples_may_arrive_in_parts_and_absent_ones_are_zero(limit: int) -> None:
    samples = numbered(6, 4) + 1
    with ActivationCache(limit) as cache:
        store = cache.allocate(6, [4])
        store.write(4, samples[4:])
        store.write(0, samples[:2])
        assert torch.equal(
            store.read(torch.tensor([1, 5, 2])),
            torch.stack([samples[1], samples[5], torch.zeros(4)]),
        )


@each_place
def test_strided_samples_that_need_gradients_are_kept(limit: int) -> None:
    samples = numbered(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    with ActivationCache(limit) as cache:
        store = cache.allocate(2, [3, 4, 4])
        store.write(0, samples.requires_grad_())
        assert torch.equal(store.read(slice(None)), samples)


@each_place
def test_a_sample_may_be_one_number(limit: int) -> None:
    with ActivationCache(limit) as cache:
        store = cache.allocate(3, [])
        store.write(0, torch.tensor([1.0, 2.0, 3.0]))
        assert store.read(torch.tensor([2, 0])).tolist() == [3.0, 1.0]


@each_place
def test_changing_what_was_read_changes_nothing_in_the_store(limit: int) -> None:
    with ActivationCache(limit) as cache:
        store = cache.allocate(2, [3])
        store.read(slice(None)).fill_(1)
        assert store.read(slice(None)).sum() == 0


@each_place
def test_samples_outside_the_store_are_refused(limit: int) -> None:
    with ActivationCache(limit) as cache:
        store = cache.allocate(4, [2])
        for start in (-1, 3):
            with pytest.raises(IndexError, match="of a store of 4"):
                store.write(start, torch.ones(2, 2))
        with pytest.raises(IndexError):
            store.read(torch.tensor([0, 4]))
        with pytest.raises(ValueError, match="do not fit"):
            store.write(0, torch.ones(2, 3))
        with pytest.raises(ValueError, match="do not fit"):
            store.write(0, torch.ones(2, 2, dtype=torch.float16))
        assert store.read(slice(None)).sum() == 0


def test_the_limit_decides_between_memory_and_disk() -> None:
    with ActivationCache(max_bytes=100) as cache:
        places = [cache.allocate(num_samples, [5]).in_memory for num_samples in (3, 3, 2, 1)]
        assert places == [True, False, True, False]
        assert (cache.bytes_in_memory, cache.bytes_on_disk) == (100, 80)


def test_releasing_gives_the_room_back() -> None:
    with ActivationCache(max_bytes=100) as cache:
        stores = [cache.allocate(5, [5]) for _ in range(2)]
        for store in stores * 2:
            store.release()
        assert (cache.bytes_in_memory, cache.bytes_on_disk) == (0, 0)
        assert cache.allocate(5, [5]).in_memory
        assert (cache.peak_bytes_in_memory, cache.peak_bytes_on_disk) == (100, 100)


@each_place
def test_a_released_store_is_not_used_again(limit: int) -> None:
    with ActivationCache(limit) as cache:
        store = cache.allocate(2, [2])
    with pytest.raises(ValueError, match="released"):
        store.read(slice(None))
    with pytest.raises(ValueError, match="released"):
        store.write(0, torch.ones(2, 2))


@pytest.mark.skipif(not STATUS.exists(), reason="no /proc")
@pytest.mark.parametrize("fails", [False, True], ids=["normal-exit", "after-an-error"])
def test_no_file_is_left_in_the_folder(tmp_path: Path, fails: bool) -> None:
    try:
        with ActivationCache(DISK, tmp_path) as cache:
            cache.allocate(4, [1000]).write(0, torch.ones(4, 1000))
            assert len(open_files_in(tmp_path)) == 1
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert fails
    assert open_files_in(tmp_path) == []
    assert list(tmp_path.iterdir()) == []
    assert cache.bytes_on_disk == 0


def resident_growth(limit: int) -> int:
    """Bytes that the process gains by caching 64 MiB, written and read in parts of 1 MiB."""
    samples = torch.ones(1, 1 << 18)
    gc.collect()
    # What earlier tests freed but the C library keeps would hold the cache without any growth.
    ctypes.CDLL(None).malloc_trim(0)
    before = resident_bytes()
    with ActivationCache(limit) as cache:
        store = cache.allocate(64, [1 << 18])
        for start in range(64):
            store.write(start, samples)
        for start in range(64):
            assert store.read(slice(start, start + 1)).mean() == 1
        return resident_bytes() - before


@pytest.mark.skipif(not STATUS.exists(), reason="no /proc")
def test_activations_on_disk_do_not_occupy_memory() -> None:
    assert resident_growth(DISK) < 24 * MIB
    assert resident_growth(MEMORY) > 40 * MIB  # or the line above would prove nothing


def test_a_disk_without_room_is_one_line_before_anything_is_written(tmp_path: Path) -> None:
    with files_no_larger_than(MIB), ActivationCache(DISK, tmp_path) as cache:
        with pytest.raises(CacheDiskError) as caught:
            cache.allocate(1 << 10, [1 << 20])
        assert cache.bytes_on_disk == 0
    assert caught.value.exit_code == 2
    assert str(caught.value) == (
        f"{tmp_path}: cannot hold 4.00 GiB of calibration activations: File too large; set TMPDIR"
        " to a folder with more room, raise `max_memory` or lower `num_samples`"
    )


def test_a_disk_that_fills_up_later_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with ActivationCache(DISK, tmp_path) as cache:
        store = cache.allocate(4, [2])
        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(
            CacheDiskError, match=f"{tmp_path}: .*No space left on device"
        ) as caught:
            store.write(0, torch.ones(4, 2))
    assert caught.value.exit_code == 2


def test_a_folder_that_does_not_exist_is_one_line(tmp_path: Path) -> None:
    with (
        ActivationCache(DISK, tmp_path / "absent") as cache,
        pytest.raises(CacheDiskError, match=r"absent: .*No such file or directory; set TMPDIR"),
    ):
        cache.allocate(1, [1])


def test_many_partial_transfers_make_one_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite, preadv = os.pwrite, os.preadv
    monkeypatch.setattr(os, "pwrite", lambda file, view, at: pwrite(file, view[:7], at))
    monkeypatch.setattr(os, "preadv", lambda file, views, at: preadv(file, [views[0][:5]], at))
    with ActivationCache(DISK) as cache:
        store = cache.allocate(5, [3])
        store.write(0, numbered(5, 3))
        assert torch.equal(store.read(torch.tensor([3, 4, 0])), numbered(5, 3)[[3, 4, 0]])
