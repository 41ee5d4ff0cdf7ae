"""MODEL and a checkpoint in, a ready float network out."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from models.checkpoint import Checkpoint, CheckpointError, one_line, read_checkpoint
from models.download import Progress, fetch_weights
from models.registry import find_model
from models.spec import ModelSpec, Preprocess, PreprocessOverrides, Task
from models.state_dict import load_weights, match_weights

logger = logging.getLogger(__name__)


class MissingWeightsError(FileNotFoundError):
    """A model has no weights that could be found without the user."""

    exit_code = 2


class ModelRunError(ValueError):
    """A network that does not run on its images, or returns what its task does not."""

    exit_code = 2


@dataclass(frozen=True)
class LoadedModel:
    """A float network that is ready to run.

    Attributes:
        name: MODEL as the user wrote it.
        module: Eval mode, float32, on the CPU; in train form, or in deploy form if the checkpoint is.
        task: What the outputs mean.
        preprocess: How images become its input: the zoo's, the checkpoint's, then the user's word.
        classes: Class names in the order of the outputs, None when the checkpoint names none.
        num_classes: Classes that the head tells apart.
        weights_path: Checkpoint file; None when the network brought its own weights.
        weights_sha256: Hex digest of that file, or of the network's own tensors.
    """

    name: str
    module: nn.Module
    task: Task
    preprocess: Preprocess
    classes: tuple[str, ...] | None
    num_classes: int
    weights_path: Path | None
    weights_sha256: str


def load_model(
    name: str,
    weights: Path | None = None,
    overrides: PreprocessOverrides | None = None,
    progress: Progress | None = None,
) -> LoadedModel:
    """Build MODEL and load its weights.

    Args:
        name: Zoo name, `timm:NAME` or `package.module:callable`.
        weights: Checkpoint; None takes the bundled file, else the published one (downloaded), else
            the weights that a user's callable brings.
        overrides: The user's preprocessing, above the checkpoint's and the zoo's.
        progress: Called with (bytes so far, total bytes or None) during a download.

    Raises:
        UnknownModelError, CheckpointError, WeightsMismatchError, MissingWeightsError, ModelRunError,
            DownloadError: One line each, with an `exit_code`.
    """
    spec = find_model(name)
    path = weights or _find_weights(spec, progress)
    overrides = overrides or PreprocessOverrides()
    if path is None:
        return _load_own_weights(spec, overrides)
    checkpoint = read_checkpoint(path)
    preprocess = spec.preprocess.override(checkpoint.preprocess).override(overrides)
    module = _build_to_fit(spec, checkpoint, preprocess.image_size)
    num_classes = _count_classes(spec, module, preprocess.image_size)
    if checkpoint.classes and len(checkpoint.classes) != num_classes:
        raise CheckpointError(
            f"{path}: names {len(checkpoint.classes)} classes, its head has {num_classes}"
        )
    return LoadedModel(
        name=name,
        module=module,
        task=spec.task,
        preprocess=preprocess,
        classes=checkpoint.classes,
        num_classes=num_classes,
        weights_path=path,
        weights_sha256=checkpoint.sha256,
    )


def load_random(
    name: str,
    overrides: PreprocessOverrides | None = None,
    seed: int = 0,
    num_classes: int | None = None,
) -> LoadedModel:
    """Build MODEL with its random initialization, for tests and for timing; no file is read."""
    spec = find_model(name)
    preprocess = spec.preprocess.override(overrides or PreprocessOverrides())
    return _load_untrained(spec, preprocess, seed, num_classes or spec.num_classes)


def _find_weights(spec: ModelSpec, progress: Progress | None) -> Path | None:
    if spec.bundled_weights is not None:
        return spec.bundled_weights
    if spec.weights is not None:
        return fetch_weights(spec.weights, spec.name, progress)
    if spec.brings_weights:
        return None
    raise MissingWeightsError(
        f"{spec.name}: no published weights that can be loaded; bring a checkpoint:"
        f" make engine MODEL={spec.name} WEIGHTS=file (or reptrt ... --weights)"
    )


def _load_own_weights(spec: ModelSpec, overrides: PreprocessOverrides) -> LoadedModel:
    logger.warning(
        "%s: no checkpoint given, the network is used as its callable returns it", spec.name
    )
    return _load_untrained(spec, spec.preprocess.override(overrides), seed=0, num_classes=None)


def _load_untrained(
    spec: ModelSpec, preprocess: Preprocess, seed: int, num_classes: int | None
) -> LoadedModel:
    module = _build(spec, num_classes, preprocess.image_size, seed).float().eval()
    return LoadedModel(
        name=spec.name,
        module=module,
        task=spec.task,
        preprocess=preprocess,
        classes=None,
        num_classes=num_classes or _count_classes(spec, module, preprocess.image_size),
        weights_path=None,
        weights_sha256=_digest(module),
    )


def _build_to_fit(
    spec: ModelSpec, checkpoint: Checkpoint, image_size: tuple[int, int]
) -> nn.Module:
    """Build `spec` with the class count of the checkpoint's head and load it."""
    match = match_weights(_build(spec, None, image_size), checkpoint.tensors)
    num_classes = match.implied_num_classes()
    if num_classes is not None:
        match = match_weights(_build(spec, num_classes, image_size), checkpoint.tensors)
    return load_weights(match, spec.name, str(checkpoint.path)).float().eval()


def _build(
    spec: ModelSpec, num_classes: int | None, image_size: tuple[int, int], seed: int = 0
) -> nn.Module:
    """Build with a seed of its own, so that what no checkpoint fills is the same every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return spec.build(num_classes, image_size)


@torch.no_grad()
def _count_classes(spec: ModelSpec, module: nn.Module, image_size: tuple[int, int]) -> int:
    """Run one grey image: it tells the class count, and early whether the image size suits."""
    size = f"1x3x{image_size[0]}x{image_size[1]}"
    try:
        output = module(torch.zeros(1, 3, *image_size))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ModelRunError(
            f"{spec.name} cannot run on {size} images: {one_line(error)}; check --image-size"
        ) from error
    if spec.task == "detection":
        return int(output[0].shape[1]) - 4
    if not isinstance(output, torch.Tensor) or output.dim() != 2:
        shown = list(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise ModelRunError(
            f"{spec.name} returns {shown} for {size} images; a classifier must return logits"
            " [images, classes]"
        )
    return output.shape[1]


def _digest(module: nn.Module) -> str:
    """Return the sha256 of the module's tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
