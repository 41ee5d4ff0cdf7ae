"""The float network's outputs on labelled images, kept between validations of one process.

`reptrt compare` and the search within a budget validate many quantized models against one float network:
what it answers is computed once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from reptrt.engines.artifacts import file_sha256
from reptrt.engines.runtime.runners import Array, Runner
from reptrt.engines.tensor_spec import TensorSpec

MOST_BYTES = 512 << 20
"""Of all outputs that many validations keep; further ones are computed each time."""


class OutputMemory:
    """Outputs by the file that gave them and what was fed to it; nothing is kept without `most_bytes`."""

    def __init__(self, most_bytes: int = 0) -> None:
        self.is_on = most_bytes > 0
        self._room = most_bytes
        self._kept: dict[str, dict[str, Array]] = {}

    def find(self, key: str) -> dict[str, Array] | None:
        """What was kept."""
        return self._kept.get(key)

    def keep(self, key: str, outputs: Mapping[str, Array]) -> None:
        """Keep `outputs` while there is room."""
        size = sum(array.nbytes for array in outputs.values())
        if size <= self._room:
            self._room -= size
            self._kept[key] = dict(outputs)


class RememberingRunner:
    """Answers as `runner` of the file at `path` does, without running it where the answer is known."""

    def __init__(self, runner: Runner, path: Path, memory: OutputMemory) -> None:
        self._runner, self._path, self._memory = runner, path, memory

    @property
    def name(self) -> str:
        """Of the runner."""
        return self._runner.name

    @property
    def backend(self) -> str:
        """Of the runner."""
        return self._runner.backend

    @property
    def device(self) -> str:
        """Of the runner."""
        return self._runner.device

    @property
    def input_metadata(self) -> dict[str, TensorSpec]:
        """Of the runner."""
        return self._runner.input_metadata

    def __enter__(self) -> RememberingRunner:
        """Load the file, and note what is in it."""
        self._runner.__enter__()
        self._file = file_sha256(self._path)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Free the runner; what it answered stays."""
        self._runner.__exit__(kind, error, traceback)

    def infer(self, feed_dict: Mapping[str, Array]) -> dict[str, Array]:
        """Every output by name."""
        if not self._memory.is_on:
            return self._runner.infer(feed_dict)
        digest = hashlib.sha256(self._file.encode())
        for name, array in sorted(feed_dict.items()):
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(array.tobytes())
        key = digest.hexdigest()
        known = self._memory.find(key)
        if known is None:
            known = self._runner.infer(feed_dict)
            self._memory.keep(key, known)
        return dict(known)
