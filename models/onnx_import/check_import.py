"""Whether a PyTorch module computes what ONNX Runtime does, and where it begins not to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx

from reptrt.engines.foreign.text import one_line
from reptrt.models.onnx_import.canonical import CanonicalGraph
from reptrt.models.onnx_import.data import OnnxFileError
from reptrt.models.onnx_import.values import Array, range_error, run_onnx

_GREY = np.float32(114 / 255)
TOLERANCE = 1e-3
"""Largest distance of the module's outputs from ONNX Runtime's, in units of their range."""


@dataclass(frozen=True)
class ImportCheck:
    """How far a module is from ONNX Runtime.

    Attributes:
        error: Largest distance of its outputs, in units of their range.
        node: The first node that differs, for people.
        tensor: What it makes.
    """

    error: float
    node: str = ""
    tensor: str = ""


def check_numerics(
    module: fx.GraphModule,
    tensors: Mapping[str, tuple[str, str]],
    canonical: CanonicalGraph,
    outputs: Sequence[str],
    images: Array | None = None,
) -> ImportCheck:
    """Compare on `images`, or on a random and a grey one.

    Args:
        module: imported.
        tensors: path of a part of it -> (node, tensor) that it computes, in graph order.
        canonical: with the reference.
        outputs: names of the tensors that `module` returns.
        images: [N, channels, H, W].

    Raises:
        OnnxFileError: an output is not finite, or the module does not run.
    """
    if images is None:
        images = _plain_images(canonical)
    images = np.resize(images, (canonical.batch_size or len(images), *images.shape[1:]))
    (expected,) = run_onnx(canonical.reference, outputs, [images])
    for name in outputs:
        if not np.isfinite(expected[name].astype(np.float64)).all():
            raise OnnxFileError(f"its output {name!r} is not finite")
    recorder = _Recorder(module)
    try:
        with torch.no_grad():
            found = module(torch.from_numpy(images))
    except Exception as error:
        return _first_failure(recorder, tensors, images, error)
    actual = [found] if isinstance(found, torch.Tensor) else list(found)
    worst = max(
        range_error(expected[name], tensor.numpy())
        for name, tensor in zip(outputs, actual, strict=True)
    )
    if worst <= TOLERANCE:
        return ImportCheck(worst)
    return _first_difference(recorder, tensors, canonical, images, worst)


def _plain_images(canonical: CanonicalGraph) -> Array:
    random = np.random.default_rng(1).random((1, *canonical.image_shape), dtype=np.float32)
    images = np.concatenate([random, np.full_like(random, _GREY)]) * np.float32(canonical.peak)
    return np.resize(images, (canonical.batch_size or 2, *images.shape[1:]))


def _first_failure(
    recorder: _Recorder, tensors: Mapping[str, tuple[str, str]], images: Array, error: Exception
) -> ImportCheck:
    """The node whose module raises."""
    try:
        with torch.no_grad():
            recorder.run(torch.from_numpy(images))
    except Exception:  # the same as before, whatever it is
        done = set(recorder.values)
        for path, (node, tensor) in tensors.items():
            if path not in done and path == recorder.current:
                return ImportCheck(float("inf"), node, tensor)
    raise OnnxFileError(f"its import does not run: {one_line(error)}") from None


def _first_difference(
    recorder: _Recorder,
    tensors: Mapping[str, tuple[str, str]],
    canonical: CanonicalGraph,
    images: Array,
    error: float,
) -> ImportCheck:
    """The first node in graph order whose output differs.

    Raises:
        OnnxFileError: none does.
    """
    with torch.no_grad():
        recorder.run(torch.from_numpy(images))
    reference = canonical.reference
    known = {name for node in reference.graph.node for name in node.output}
    names = [tensors[path][1] for path in recorder.values if tensors[path][1] in known]
    (expected,) = run_onnx(reference, names, [images])
    for path, value in recorder.values.items():
        node, tensor = tensors[path]
        if tensor in expected and range_error(expected[tensor], value) > TOLERANCE / 10:
            return ImportCheck(error, node, tensor)
    raise OnnxFileError(f"its import differs from ONNX Runtime by {error:.1e} of an output's range")


class _Recorder(fx.Interpreter):
    """Runs a module and keeps what each of its parts returns."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.values: dict[str, Array] = {}
        self.current = ""

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Run one part."""
        self.current = target
        result = super().call_module(target, args, kwargs)
        if isinstance(result, torch.Tensor):
            self.values[target] = result.numpy()
        return result
