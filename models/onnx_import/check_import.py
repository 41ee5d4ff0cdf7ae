"""Whether a PyTorch module computes what ONNX Runtime does, and where it begins not to."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx

from reptrt.engines.foreign.text import one_line
from reptrt.models.inputs import Feed, count_samples, random_feed, resize_feed
from reptrt.models.onnx_import.canonical import CanonicalGraph
from reptrt.models.onnx_import.data import OnnxFileError
from reptrt.models.onnx_import.values import Array, range_error, run_onnx

logger = logging.getLogger(__name__)

_GREY = np.float32(114 / 255)
TOLERANCE = 1e-3
"""Largest distance of the module's outputs from ONNX Runtime's, in units of their range."""


@dataclass(frozen=True)
class ImportCheck:
    """How far a module is from ONNX Runtime.

    Attributes:
        error: Largest distance of its outputs, in units of their range; where only rounding differs, that of what a node
            makes of the same values.
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
    given: Sequence[Array] | None = None,
) -> ImportCheck:
    """Compare on `given`, or on a random sample and a grey one.

    Args:
        module: imported.
        tensors: path of a part of it -> (node, tensor) that it computes, in graph order.
        canonical: with the reference.
        outputs: names of the tensors that `module` returns.
        given: values of the inputs, in order.

    Raises:
        OnnxFileError: an output is not finite, or the module does not run.
    """
    names = [one.name for one in canonical.inputs]
    feed: Feed = _plain_feed(canonical) if given is None else dict(zip(names, given, strict=True))
    count = canonical.batch_size or count_samples(feed, canonical.inputs)
    feed = resize_feed(feed, canonical.inputs, count)
    values = [torch.from_numpy(feed[name]) for name in names]
    (expected,) = run_onnx(canonical.reference, outputs, [feed])
    for name in outputs:
        if not np.isfinite(expected[name].astype(np.float64)).all():
            raise OnnxFileError(f"its output {name!r} is not finite")
    recorder = _Recorder(module)
    try:
        with torch.no_grad():
            found = module(*values)
    except Exception as error:
        return _first_failure(recorder, tensors, values, error)
    actual = [found] if isinstance(found, torch.Tensor) else list(found)
    worst = max(
        range_error(expected[name], tensor.numpy())
        for name, tensor in zip(outputs, actual, strict=True)
    )
    if worst <= TOLERANCE:
        return ImportCheck(worst)
    return _first_difference(recorder, tensors, canonical, feed, outputs, worst)


def _plain_feed(canonical: CanonicalGraph) -> Feed:
    """Two samples: random, and where pictures go, grey."""
    feed = random_feed(canonical.inputs, 2, seed=1)
    for one in canonical.inputs:
        if one.picture and one.batched:
            feed[one.name][1] = (_GREY * one.peak).astype(one.dtype)
    return feed


def _first_failure(
    recorder: _Recorder,
    tensors: Mapping[str, tuple[str, str]],
    values: Sequence[torch.Tensor],
    error: Exception,
) -> ImportCheck:
    """The node whose module raises."""
    try:
        with torch.no_grad():
            recorder.run(*values)
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
    feed: Feed,
    outputs: Sequence[str],
    error: float,
) -> ImportCheck:
    """The first node in graph order that makes something else of what ONNX Runtime gives it.

    Where none does, the outputs differ by what the network makes of rounding: the check has the error of the
    worst node then.

    Raises:
        OnnxFileError: no node makes one of the outputs.
    """
    reference = canonical.reference
    known = {name for node in reference.graph.node for name in node.output}
    names = [tensor for _, tensor in tensors.values() if tensor in known]
    (expected,) = run_onnx(reference, names, [feed])
    recorder.given = {p: expected[t] for p, (_, t) in tensors.items() if t in expected}
    with torch.no_grad():
        recorder.run(*(torch.from_numpy(feed[one.name]) for one in canonical.inputs))
    worst, compared = 0.0, set()
    for path, value in recorder.values.items():
        node, tensor = tensors[path]
        if tensor not in expected:
            continue
        compared.add(tensor)
        own = range_error(expected[tensor], value)
        if own > TOLERANCE / 10:
            return ImportCheck(error, node, tensor)
        worst = max(worst, own)
    if not compared.issuperset(outputs):
        raise OnnxFileError(
            f"its import differs from ONNX Runtime by {error:.1e} of an output's range"
        )
    logger.warning(
        "the network makes %.1e of an output's range of rounding: on these values its outputs mean little",
        error,
    )
    return ImportCheck(worst)


class _Recorder(fx.Interpreter):
    """Runs a module and keeps what each of its parts returns; the parts behind read what is `given` in place of it."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.values: dict[str, Array] = {}
        self.given: dict[str, Array] = {}
        self.current = ""

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Run one part."""
        self.current = target
        result = super().call_module(target, args, kwargs)
        if isinstance(result, torch.Tensor):
            self.values[target] = result.numpy()
            if target in self.given:
                return torch.from_numpy(self.given[target])
        return result
