"""Activations of all calibration images: in memory up to a limit, beyond it in files.

A block is reconstructed from what its predecessors computed for every image, many times over. What
does not fit in memory goes to a file without a name: the system frees it even if the process is
killed. Files are read sample by sample and never mapped, because mapped pages count as resident.
"""

from __future__ import annotations

import errno
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import torch


class CacheDiskError(OSError):
    """The disk cannot hold the activations."""

    exit_code = 2


class SampleStore(ABC):
    """Samples of one shape and dtype, by index; a sample that was never written reads as zeros.

    Attributes:
        num_samples: how many.
        sample_shape: shape of one, without the batch axis.
        dtype: kept as it is, bit by bit.
        num_bytes: size of all.
        in_memory: whether that is memory, or else disk.
        released: whether the room was given back.
    """

    in_memory: bool

    def __init__(self, num_samples: int, sample_shape: Sequence[int], dtype: torch.dtype) -> None:
        self.num_samples = num_samples
        self.sample_shape = torch.Size(sample_shape)
        self.dtype = dtype
        self.num_bytes = num_samples * self.sample_shape.numel() * dtype.itemsize
        self.released = False

    def write(self, start: int, samples: torch.Tensor) -> None:
        """Keep `samples` [n, *sample_shape], from any device, as numbers `start` to `start` + n.

        Raises:
            ValueError: another shape or dtype, or a released store.
            IndexError: more samples than the store has.
            CacheDiskError: the disk refuses.
        """
        self._check_held()
        if samples.shape[1:] != self.sample_shape or samples.dtype != self.dtype:
            found, legal = (tuple(samples.shape[1:]), samples.dtype), tuple(self.sample_shape)
            raise ValueError(f"samples of {found} do not fit a store of {(legal, self.dtype)}")
        if not 0 <= start <= self.num_samples - len(samples):
            stop = start + len(samples)
            raise IndexError(f"samples {start} to {stop} of a store of {self.num_samples}")
        self._write(start, samples.detach().to("cpu"))

    def read(self, indices: torch.Tensor | slice) -> torch.Tensor:
        """Copy of the samples `indices`, in that order, repeats too: [n, *sample_shape] on the CPU.

        Raises:
            ValueError: a released store.
            IndexError: an index outside the store.
            CacheDiskError: the disk refuses.
        """
        self._check_held()
        rows = indices.to("cpu") if isinstance(indices, torch.Tensor) else indices
        return self._read(torch.arange(self.num_samples)[rows])

    def release(self) -> None:
        """Give the room back, once and for all; again is no error."""
        self.released = True
        self._free()

    def _check_held(self) -> None:
        if self.released:
            raise ValueError("this store of activations was released")

    @abstractmethod
    def _write(self, start: int, samples: torch.Tensor) -> None: ...

    @abstractmethod
    def _read(self, rows: torch.Tensor) -> torch.Tensor: ...

    @abstractmethod
    def _free(self) -> None: ...


class MemoryStore(SampleStore):
    """Samples in one tensor."""

    in_memory = True

    def __init__(self, num_samples: int, sample_shape: Sequence[int], dtype: torch.dtype) -> None:
        super().__init__(num_samples, sample_shape, dtype)
        self._samples = torch.zeros(num_samples, *self.sample_shape, dtype=dtype)

    def _write(self, start: int, samples: torch.Tensor) -> None:
        self._samples[start : start + len(samples)] = samples

    def _read(self, rows: torch.Tensor) -> torch.Tensor:
        return self._samples.index_select(0, rows)

    def _free(self) -> None:
        self._samples = torch.empty(0)


class FileStore(SampleStore):
    """Samples one after another in a file without a name, whose room is reserved from the start."""

    in_memory = False

    def __init__(
        self,
        num_samples: int,
        sample_shape: Sequence[int],
        dtype: torch.dtype,
        folder: Path | None,
    ) -> None:
        super().__init__(num_samples, sample_shape, dtype)
        self._folder = folder
        self._sample_bytes = self.sample_shape.numel() * dtype.itemsize
        with self._disk_errors():
            self._file = tempfile.TemporaryFile(buffering=0, dir=folder)  # noqa: SIM115  # held
            try:
                # A full disk must stop the run here, not after an hour of calibration.
                os.posix_fallocate(self._file.fileno(), 0, self.num_bytes)
            except OSError:
                self._file.close()
                raise

    def _write(self, start: int, samples: torch.Tensor) -> None:
        view, offset = _as_bytes(samples), start * self._sample_bytes
        with self._disk_errors():
            # One call moves 2 GiB at most.
            while view:
                done = os.pwrite(self._file.fileno(), view, offset)
                view, offset = view[done:], offset + done

    def _read(self, rows: torch.Tensor) -> torch.Tensor:
        samples = torch.empty(len(rows), *self.sample_shape, dtype=self.dtype)
        if not len(rows):
            return samples
        view = _as_bytes(samples)
        # Neighbours on disk are one transfer: a slice is read at once.
        run_starts = torch.nonzero(rows.diff() != 1).flatten() + 1
        with self._disk_errors():
            for run in rows.tensor_split(run_starts):
                length = len(run) * self._sample_bytes
                self._fill(view[:length], int(run[0]) * self._sample_bytes)
                view = view[length:]
        return samples

    def _fill(self, view: memoryview, offset: int) -> None:
        while view:
            done = os.preadv(self._file.fileno(), [view], offset)
            if not done:
                raise OSError(errno.EIO, "the file was cut short")
            view, offset = view[done:], offset + done

    def _free(self) -> None:
        self._file.close()

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            where = self._folder or tempfile.tempdir or "the temporary folder"
            raise CacheDiskError(
                f"{where}: cannot hold {self.num_bytes / 2**30:.2f} GiB of calibration "
                f"activations: {error.strerror}; set TMPDIR to a folder with more room, raise "
                "`max_memory` or lower `num_samples`"
            ) from error


class ActivationCache:
    """Stores that share one limit of memory; leaving the context releases them all.

    Attributes:
        peak_bytes_in_memory: most that was held in memory at once.
        peak_bytes_on_disk: most that was held on disk at once.
    """

    def __init__(self, max_bytes: int, folder: Path | None = None) -> None:
        """Make an empty cache.

        Args:
            max_bytes: limit of all stores in memory; 0 puts every store on disk. What a caller
                reads is a copy and does not count.
            folder: where files go; None for the system's temporary folder.
        """
        self._max_bytes = max_bytes
        self._folder = folder
        self._stores: list[SampleStore] = []
        self.peak_bytes_in_memory = 0
        self.peak_bytes_on_disk = 0

    @property
    def bytes_in_memory(self) -> int:
        """What unreleased stores hold in memory."""
        return sum(s.num_bytes for s in self._stores if s.in_memory and not s.released)

    @property
    def bytes_on_disk(self) -> int:
        """What unreleased stores hold on disk."""
        return sum(s.num_bytes for s in self._stores if not (s.in_memory or s.released))

    def allocate(
        self, num_samples: int, sample_shape: Sequence[int], dtype: torch.dtype = torch.float32
    ) -> SampleStore:
        """Room for `num_samples` of `sample_shape`: in memory if the limit allows, else on disk.

        Raises:
            CacheDiskError: the disk has no such room.
        """
        num_bytes = num_samples * torch.Size(sample_shape).numel() * dtype.itemsize
        store: SampleStore
        if self.bytes_in_memory + num_bytes <= self._max_bytes:
            store = MemoryStore(num_samples, sample_shape, dtype)
        else:
            store = FileStore(num_samples, sample_shape, dtype, self._folder)
        self._stores = [s for s in self._stores if not s.released] + [store]
        self.peak_bytes_in_memory = max(self.peak_bytes_in_memory, self.bytes_in_memory)
        self.peak_bytes_on_disk = max(self.peak_bytes_on_disk, self.bytes_on_disk)
        return store

    def __enter__(self) -> ActivationCache:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for store in self._stores:
            store.release()


def _as_bytes(samples: torch.Tensor) -> memoryview:
    """Memory of a CPU tensor of any dtype: shared if it is contiguous, else of a copy."""
    return samples.reshape(-1).view(torch.uint8).numpy().data
