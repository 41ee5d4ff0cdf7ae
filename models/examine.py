"""What a run of a network shows: its task, its classes, and whether its inputs suit."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import nn

from reptrt.engines.foreign.text import one_line
from reptrt.models.inputs import NetworkInput, image_input
from reptrt.models.onnx_import.tail import Tail
from reptrt.models.spec import ModelSpec, Preprocess, PreprocessOverrides, Task
from reptrt.models.task import (
    PREPROCESS,
    OutputError,
    count_classes,
    list_outputs,
    recognize_task,
    warn_of_assumptions,
)

logger = logging.getLogger(__name__)


class ModelRunError(ValueError):
    """A network that does not run on its images, or returns what its task does not."""

    exit_code = 2


class Stated(NamedTuple):
    """What a file says of its images, and what of it is not in the module."""

    image_size: tuple[int, int] | None = None
    batch_size: int | None = None
    channels: int = 3
    takes_pixels: bool = False
    tail: Tail | None = None
    inputs: tuple[NetworkInput, ...] = ()
    output_names: tuple[str, ...] = ()


class Examined(NamedTuple):
    """What a run of the network shows."""

    task: Task
    preprocess: Preprocess
    num_classes: int


def examine(
    spec: ModelSpec,
    module: nn.Module,
    task: Task | None,
    overrides: PreprocessOverrides,
    stated: Stated = Stated(),  # noqa: B008  # immutable
) -> Examined:
    """Run one image: it tells task and class count, and early whether the image size suits."""
    task = spec.task or task
    if task is None:
        size = stated.image_size or overrides.image_size
        outputs, size = _run_any_size(spec, module, size, stated)
        task = recognize_task(outputs, size, stated.batch_size or 1, stated.output_names)
        if task == "classification" and stated.tail is not None:
            task = "generic"  # rows that something selected, as many as there are images by chance
        logger.info("%s: its outputs are those of a %s network", spec.name, task)
    preprocess = _default_preprocess(spec, task, stated).override(overrides)
    outputs = _run(spec, module, preprocess.image_size, stated)
    if spec.task is None and (not stated.inputs or any(one.picture for one in stated.inputs)):
        warn_of_assumptions(spec.name, task, preprocess, overrides)
    try:
        shapes = [tuple(output.shape) for output in outputs]
        return Examined(task, preprocess, count_classes(task, shapes, preprocess.image_size))
    except OutputError as error:
        raise OutputError(f"{spec.name} {error}") from None


def _default_preprocess(spec: ModelSpec, task: Task, stated: Stated) -> Preprocess:
    """How images are prepared where nobody says it."""
    default = spec.preprocess or PREPROCESS[task]
    size = stated.image_size or default.image_size
    default = replace(default, image_size=size, num_channels=stated.channels)
    if stated.takes_pixels:  # 0..255, as they are
        return replace(default, mean=(0.0,) * 3, std=(1 / 255,) * 3)
    return default


def _run_any_size(
    spec: ModelSpec, module: nn.Module, size: tuple[int, int] | None, stated: Stated
) -> tuple[list[torch.Tensor], tuple[int, int]]:
    """Outputs for images of `size`, None for the first usual size that the network takes."""
    usual = [PREPROCESS[task].image_size for task in ("classification", "detection")]
    *others, last = [size] if size else usual[:1] if stated.inputs else usual
    for attempt in others:
        try:
            return _run(spec, module, attempt, stated), attempt
        except ModelRunError:
            continue
    return _run(spec, module, last, stated), last


@torch.no_grad()
def _run(
    spec: ModelSpec, module: nn.Module, size: tuple[int, int], stated: Stated
) -> list[torch.Tensor]:
    peak = 255.0 if stated.takes_pixels else 1.0
    inputs = stated.inputs or (image_input(size, stated.channels, peak),)
    batch = stated.batch_size or 1
    values = [torch.from_numpy(one.random(batch, seed=0)) for one in inputs]
    try:
        outputs = list_outputs(module(*values))
        return outputs if stated.tail is None else stated.tail.run(values, outputs)
    except OutputError as error:
        raise OutputError(f"{spec.name} {error}") from None
    except (AssertionError, RuntimeError, TypeError, ValueError, IndexError) as error:
        if stated.inputs:
            shown = "; ".join(one.describe() for one in inputs)
            raise ModelRunError(f"{spec.name} cannot run on {shown}: {one_line(error)}") from error
        shape = "x".join(map(str, inputs[0].shape(batch)))
        raise ModelRunError(
            f"{spec.name} cannot run on {shape} images: {one_line(error)}; check `image_size`"
        ) from error
