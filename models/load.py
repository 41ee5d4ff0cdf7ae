"""MODEL and a checkpoint in, a ready float network out."""

from __future__ import annotations

import copy
import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from reptrt.models.examine import Examined, Stated, examine
from reptrt.models.inputs import Feed, NetworkInput, named_inputs
from reptrt.models.onnx_import.as_is import FloatFile, QuantizedFile, take_as_is
from reptrt.models.onnx_import.check_import import TOLERANCE, ImportCheck
from reptrt.models.onnx_import.data import OnnxFileError
from reptrt.models.onnx_import.file import read_onnx, require_float
from reptrt.models.onnx_import.file_inputs import OnnxFile
from reptrt.models.onnx_import.importer import import_onnx
from reptrt.models.onnx_import.islands import IslandNote
from reptrt.models.onnx_import.tail import Tail
from reptrt.models.onnx_import.values import Array
from reptrt.models.registry import find_model
from reptrt.models.spec import ModelSpec, Preprocess, PreprocessOverrides, Task
from reptrt.models.task import (
    PREPROCESS,
    OutputError,
)
from reptrt.models.weights.checkpoint import Checkpoint, CheckpointError, read_checkpoint
from reptrt.models.weights.download import Progress, fetch_weights
from reptrt.models.weights.state_dict import load_weights, match_weights

logger = logging.getLogger(__name__)

FindFloat = Callable[[OnnxFile], "FloatFile | None"]
"""The float network of a quantized file; None for a file that is in float itself."""


class MissingWeightsError(FileNotFoundError):
    """A model has no weights that could be found without the user."""

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
        num_classes: Classes that the head tells apart; 0 for a generic network.
        weights_path: Checkpoint or ONNX file; None when the network brought its own weights.
        weights_sha256: Hex digest of that file, or of the network's own tensors.
        output_names: Of the ONNX file that it was imported from.
        batch_size: The only one that the network can run; None where any will do.
        tail: Of an ONNX file: what follows `module` and sorts, selects or decides.
        islands: Of an ONNX file: what ONNX Runtime computes, the tail included.
        check: Of an ONNX file: compares `module` with ONNX Runtime on values of its inputs, in order.
        stated_accuracy: Top-1 or mAP 50-95 in percent that the checkpoint states; None for nothing stated.
        stated_inputs: What it reads; none for one image.
        quantized: The ONNX file as it is, where it brings its own scales; `module` is then its float model,
            or what it implies of it.
    """

    name: str
    module: nn.Module
    task: Task
    preprocess: Preprocess
    classes: tuple[str, ...] | None
    num_classes: int
    weights_path: Path | None
    weights_sha256: str
    output_names: tuple[str, ...] | None = None
    batch_size: int | None = None
    stated_accuracy: float | None = None
    tail: Tail | None = None
    islands: tuple[IslandNote, ...] = ()
    check: Callable[[Sequence[Array]], ImportCheck] | None = None
    stated_inputs: tuple[NetworkInput, ...] = ()
    quantized: QuantizedFile | None = None

    @property
    def inputs(self) -> tuple[NetworkInput, ...]:
        """What the network reads, in the order of `forward`."""
        return self.stated_inputs or self.preprocess.inputs

    def require_same_as_file(self, *values: Array) -> None:
        """Compare the import of an ONNX file with ONNX Runtime on `values` of the inputs, in order.

        Raises:
            OnnxFileError: They differ; the first node that does is named.
        """
        found = self.check(values) if self.check else None
        if found is not None and found.error > TOLERANCE:
            raise OnnxFileError(
                f"{self.name}: its import differs from ONNX Runtime by {found.error:.1e} of an"
                f" output's range on the calibration data, from {found.node!r} on: bring the model"
                " as package.module:callable"
            )


def load_model(
    name: str,
    weights: Path | None = None,
    overrides: PreprocessOverrides | None = None,
    progress: Progress | None = None,
    task: Task | None = None,
    feed: Feed | None = None,
    float_of: FindFloat | None = None,
) -> LoadedModel:
    """Build MODEL and load its weights.

    Args:
        name: Zoo name, `timm:NAME`, `package.module:callable` or `file.onnx`.
        weights: Checkpoint; None takes the bundled file, else the published one (downloaded), else
            the weights that a user's callable brings.
        overrides: The user's preprocessing, above the checkpoint's and the zoo's.
        progress: Called with (bytes so far, total bytes or None) during a download.
        task: What the outputs of a user's own network mean; None lets them tell.
        feed: One sample by input name, for networks that read something else than one image: it tells
            types and sides that nothing else states.
        float_of: Finds the float network of an ONNX file that is quantized already; None refuses such.

    Raises:
        UnknownModelError, CheckpointError, WeightsMismatchError, MissingWeightsError, ModelRunError,
            OutputError, OnnxFileError, DownloadError: One line each, with an `exit_code`.
    """
    spec = find_model(name)
    overrides = overrides or PreprocessOverrides()
    if task is not None and spec.task not in (None, task):
        raise OutputError(f"{name} is made for {spec.task}; `task` is for models of your own")
    if spec.onnx is not None:
        return _load_onnx(spec, spec.onnx, weights, overrides, task, feed, float_of)
    path = weights or _find_weights(spec, progress)
    if path is None:
        logger.warning(
            "%s: no checkpoint given, the network is used as its callable returns it", name
        )
        module = _build(spec, None, _first_size(spec, overrides, task)).float().eval()
        inputs = named_inputs(module, feed, name) if spec.task is None else ()
        found = examine(spec, module, task, overrides, Stated(inputs=inputs))
        loaded = _describe(spec, module, found, None, None, _digest(module))
        return replace(loaded, stated_inputs=inputs)
    checkpoint = read_checkpoint(path)
    stated = checkpoint.preprocess.override(overrides)
    module = _build_to_fit(spec, checkpoint, _first_size(spec, stated, task))
    inputs = named_inputs(module, feed, name) if spec.task is None else ()
    found = examine(spec, module, task, stated, Stated(inputs=inputs))
    if checkpoint.classes and len(checkpoint.classes) != found.num_classes:
        raise CheckpointError(
            f"{path}: names {len(checkpoint.classes)} classes, its head has {found.num_classes}"
        )
    loaded = _describe(spec, module, found, checkpoint.classes, path, checkpoint.sha256)
    return replace(loaded, stated_accuracy=checkpoint.accuracy, stated_inputs=inputs)


def load_module(
    module: nn.Module,
    name: str,
    overrides: PreprocessOverrides | None = None,
    task: Task | None = None,
    feed: Feed | None = None,
) -> LoadedModel:
    """A network that the caller holds, as if it had been read: a copy in float32, on the CPU.

    Args:
        module: takes images [N, 3, H, W], or what `feed` names; may be defined anywhere, a notebook's
            cell too.
        name: that files and reports get.
        overrides: how images are prepared; without it, as its task usually wants them.
        task: what its outputs mean; None lets them tell.
        feed: one sample by the names that `forward` gives its arguments; None for an image.

    Raises:
        ModelRunError, OutputError: it does not run on images, or returns what its task does not.
    """
    own = copy.deepcopy(module).float().eval().cpu()
    spec = ModelSpec(
        name=name,
        task=None,
        build=lambda num_classes, image_size: own,
        num_classes=None,
        preprocess=None,
        description="a network in memory",
        brings_weights=True,
    )
    inputs = named_inputs(own, feed, name)
    found = examine(spec, own, task, overrides or PreprocessOverrides(), Stated(inputs=inputs))
    return replace(_describe(spec, own, found, None, None, _digest(own)), stated_inputs=inputs)


def load_random(
    name: str,
    overrides: PreprocessOverrides | None = None,
    seed: int = 0,
    num_classes: int | None = None,
) -> LoadedModel:
    """Build MODEL with its random initialization, for tests and for timing; no file is read."""
    spec, overrides = find_model(name), overrides or PreprocessOverrides()
    size = _first_size(spec, overrides, None)
    module = _build(spec, num_classes or spec.num_classes, size, seed).float().eval()
    known = num_classes or spec.num_classes
    if spec.task is not None and spec.preprocess is not None and known is not None:
        found = Examined(spec.task, spec.preprocess.override(overrides), known)
    else:
        found = examine(spec, module, None, overrides)
    return _describe(spec, module, found, None, None, _digest(module))


def _describe(
    spec: ModelSpec,
    module: nn.Module,
    found: Examined,
    classes: tuple[str, ...] | None,
    path: Path | None,
    sha256: str,
) -> LoadedModel:
    return LoadedModel(
        name=spec.name,
        module=module,
        task=found.task,
        preprocess=found.preprocess,
        classes=classes,
        num_classes=found.num_classes,
        weights_path=path,
        weights_sha256=sha256,
    )


def _load_onnx(
    spec: ModelSpec,
    path: Path,
    weights: Path | None,
    overrides: PreprocessOverrides,
    task: Task | None,
    feed: Feed | None,
    float_of: FindFloat | None,
) -> LoadedModel:
    if weights is not None:
        raise CheckpointError(f"{weights}: {path} brings its own weights; leave `weights` out")
    file = read_onnx(path)
    if float_of is None:
        require_float(file)
    origin = None if float_of is None else float_of(file)
    default = PREPROCESS[task].image_size if task else None
    size_range = file.size_range(overrides)
    size = file.image_size(overrides.image_size, default, feed) if file.picture else None
    if size_range is not None:
        smallest, largest = size_range
        overrides = replace(overrides, image_size=size, smallest=smallest, largest=largest)
    network = import_onnx(file if origin is None else origin.file, size, feed, size_range)
    stated = Stated(
        size,
        network.batch_size,
        file.channels,
        file.raw_type is not None,
        network.tail,
        () if file.is_of_one_image else network.inputs,
        tuple(value.name for value in file.proto.graph.output),
    )
    found = examine(spec, network.module, task, overrides, stated)
    loaded = _describe(spec, network.module, found, None, path, file.sha256)
    batch_size, kept = network.batch_size, None
    if origin is not None and origin.keeps_scales:
        batch_size = file.batch or batch_size
        kept = take_as_is(file, size, batch_size, network.outputs)
    return replace(
        loaded,
        output_names=network.outputs,
        batch_size=batch_size,
        tail=network.tail,
        islands=network.islands,
        check=network.check,
        stated_inputs=stated.inputs,
        quantized=kept,
    )


def _find_weights(spec: ModelSpec, progress: Progress | None) -> Path | None:
    if spec.bundled_weights is not None:
        return spec.bundled_weights
    if spec.weights is not None:
        return fetch_weights(spec.weights, spec.name, progress)
    if spec.brings_weights:
        return None
    raise MissingWeightsError(
        f"{spec.name}: no published weights that can be loaded; bring a checkpoint:"
        f" make engine MODEL={spec.name} WEIGHTS=file (or give `weights`)"
    )


def _build_to_fit(
    spec: ModelSpec, checkpoint: Checkpoint, image_size: tuple[int, int]
) -> nn.Module:
    """Build `spec` with the class count of the checkpoint's head and load it."""
    match = match_weights(_build(spec, None, image_size), checkpoint.tensors)
    num_classes = match.implied_num_classes()
    if num_classes is not None:
        match = match_weights(_build(spec, num_classes, image_size), checkpoint.tensors)
    source = str(checkpoint.path)
    return load_weights(match, spec.name, source, checkpoint.activations).float().eval()


def _build(
    spec: ModelSpec, num_classes: int | None, image_size: tuple[int, int], seed: int = 0
) -> nn.Module:
    """Build with a seed of its own, so that what no checkpoint fills is the same every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return spec.build(num_classes, image_size)


def _first_size(
    spec: ModelSpec, overrides: PreprocessOverrides, task: Task | None
) -> tuple[int, int]:
    """Image size to build the network for."""
    default = spec.preprocess or PREPROCESS[task or "classification"]
    return overrides.image_size or default.image_size


def _digest(module: nn.Module) -> str:
    """Return the sha256 of the module's tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
