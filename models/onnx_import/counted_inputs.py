"""Whether the first axes of a file's inputs count samples: tried, where the file or the data leave a doubt.

An open first axis may count the samples of a batch, or the rows of one sample, as the pillars of a cloud of
points. A number [1] may be of one sample, or shared by all.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from reptrt.models.inputs import Feed, NetworkInput
from reptrt.models.onnx_import.canonical import CanonicalGraph, canonicalize
from reptrt.models.onnx_import.data import OnnxFileError
from reptrt.models.onnx_import.file_inputs import OnnxFile

logger = logging.getLogger(__name__)


def canonicalize_inputs(
    file: OnnxFile, inputs: tuple[NetworkInput, ...], feed: Feed | None
) -> tuple[CanonicalGraph, tuple[NetworkInput, ...]]:
    """The canonical graph, and its inputs, of which fewer may count samples.

    Args:
        file: checked.
        inputs: as the file describes them.
        feed: a sample by the names of the file; None where there is none.

    Raises:
        OnnxFileError: ONNX Runtime cannot run it.
    """
    rows = _as_rows(file, inputs, feed)
    try:
        canonical = canonicalize(file, inputs)
    except OnnxFileError:
        other = None if rows == inputs else _tried(file, rows)
        if other is None:
            raise
        return other, rows
    shared = tuple(
        replace(one, batched=False, sides=(file.batch or 1,))
        if one.batched and not one.sides
        else one
        for one in inputs
    )
    if canonical.batch_size and shared != inputs and any(one.batched for one in shared):
        other = canonicalize(file, shared)
        if other.batch_size is None:
            return other, shared
    if canonical.batch_size and rows != inputs and (other := _tried(file, rows)) is not None:
        logger.warning(
            "%s: the first axis of its inputs counts no samples (%s): the engine gets them as the data"
            " has them: %s",
            file.path, canonical.fixed_because, "; ".join(one.describe() for one in rows),
        )  # fmt: skip
        return other, rows
    if canonical.batch_size:
        is_fixed = all(None not in one.sides for one in file.inputs)
        advice = "; export the model with a dynamic batch for others" if is_fixed else ""
        logger.warning(
            "%s: runs on batches of %d only (%s): the engine gets that batch%s",
            file.path, canonical.batch_size, canonical.fixed_because, advice,
        )  # fmt: skip
    return canonical, inputs


def _as_rows(
    file: OnnxFile, inputs: tuple[NetworkInput, ...], feed: Feed | None
) -> tuple[NetworkInput, ...]:
    """`inputs` whose open first axes are as long as in the sample `feed`, where that has more than one."""
    counted = [one for one in inputs if one.batched]
    if feed is None or file.batch is not None:
        return inputs
    shapes = {one.name: feed[one.name].shape for one in counted if one.name in feed}
    is_whole = all(len(shapes.get(one.name, ())) == len(one.sides) + 1 for one in counted)
    if not is_whole or {shape[0] for shape in shapes.values()} <= {1}:
        return inputs
    return tuple(
        replace(one, batched=False, sides=shapes[one.name]) if one.batched else one
        for one in inputs
    )


def _tried(file: OnnxFile, inputs: tuple[NetworkInput, ...]) -> CanonicalGraph | None:
    """The canonical graph for `inputs`; None where ONNX Runtime cannot run that."""
    try:
        return canonicalize(file, inputs)
    except OnnxFileError:
        return None
