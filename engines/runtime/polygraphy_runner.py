"""Our runners as Polygraphy's, for its `Comparator`: the same sessions, engines and CUDA stream."""

from __future__ import annotations

import time
from collections.abc import Mapping

from polygraphy.backend.base import BaseRunner
from polygraphy.common import TensorMetadata

from reptrt.engines.runtime.runners import Array, Runner


class PolygraphyRunner(BaseRunner):  # type: ignore[misc]  # Polygraphy has no types
    """A runner of ours that Polygraphy activates, feeds and times.

    Polygraphy names inputs that are missing, unknown, or of another shape or type. Its name is that of
    `runner`, so give runners that are compared names of their own.
    """

    def __init__(self, runner: Runner) -> None:
        super().__init__(name=runner.name)
        self._runner = runner

    def activate_impl(self) -> None:
        """Load the model; raises as the runner does."""
        self._runner.__enter__()

    def deactivate_impl(self) -> None:
        """Free it."""
        self._runner.__exit__(None, None, None)

    def get_input_metadata_impl(self) -> TensorMetadata:
        """Names, types and shapes of the inputs; an open dimension is None."""
        metadata = TensorMetadata()
        for name, spec in self._runner.input_metadata.items():
            shape = tuple(None if side < 0 else side for side in spec.shape)
            metadata.add(name, spec.dtype, shape)
        return metadata

    def infer_impl(self, feed_dict: Mapping[str, Array]) -> dict[str, Array]:
        """Run once, and note how many seconds that took."""
        started = time.perf_counter()
        outputs = self._runner.infer(feed_dict)
        self.inference_time = time.perf_counter() - started
        return outputs
