"""From MODEL to a placed, uncalibrated quantized model and the card that describes it."""

from __future__ import annotations

import copy
import hashlib
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import fx, nn

from reptrt.calibrators.quantized.channel_affine import ChannelAffine
from reptrt.calibrators.quantized.output_parts import find_parts
from reptrt.calibrators.quantized.placement import place_quantizers
from reptrt.calibrators.quantized.quantized_model import QuantizedModel, insert_quantizers
from reptrt.calibrators.reconstruction.qprep import protect_reparameterization
from reptrt.engines.target import MissingComponentError
from reptrt.models.card import ModelCard
from reptrt.models.expand_attention import expand_attention
from reptrt.models.fuse import reparameterize
from reptrt.models.fuse_check import require_same_function
from reptrt.models.graph import trace
from reptrt.models.load import LoadedModel
from reptrt.models.spec import Task
from reptrt.models.task import OutputError, count_classes, list_outputs
from reptrt.pipeline.recipe import Recipe


@dataclass(frozen=True)
class Recording:
    """What a network computes, before anything is decided about it.

    Attributes:
        float_graph: of the deploy form; nobody changes it.
        affines: layer -> BatchNorm of the dense branch that it was merged from.
    """

    float_graph: fx.GraphModule
    affines: Mapping[str, ChannelAffine]


@dataclass(frozen=True)
class Network:
    """A model on its way to an engine.

    Attributes:
        float_graph: the reference; calibration changes weights and biases of `quantized` only.
        quantized: the same graph with quantizers, and with attention in parts where those are
            quantized.
        card: contract of both.
    """

    float_graph: fx.GraphModule
    quantized: QuantizedModel
    card: ModelCard


def record_network(loaded: LoadedModel, recipe: Recipe) -> Recording:
    """Reparameterize and trace.

    Raises:
        ReparameterizationError: a block cannot be fused, or computes something else then.
        TraceError: the network cannot be recorded.
        MissingComponentError: `recipe.device` is not here.
    """
    if recipe.device == "cuda" and not torch.cuda.is_available():
        raise MissingComponentError(
            "--device cuda: PyTorch finds no CUDA GPU here; install its driver and a CUDA build of "
            "PyTorch, or calibrate with --device cpu"
        )
    deploy_form = reparameterize(loaded.module)
    image_size, channels = loaded.preprocess.image_size, loaded.preprocess.num_channels
    require_same_function(loaded.module, deploy_form, image_size, channels)
    affines = protect_reparameterization(loaded.module, deploy_form)
    deploy_form.to(recipe.device)
    float_graph = trace(
        deploy_form,
        image_size,
        batch_size=fixed_batch(loaded, recipe),
        num_channels=channels,
    )
    return Recording(float_graph, affines)


def prepare_network(
    loaded: LoadedModel,
    recipe: Recipe,
    sensitive: Mapping[str, float] | None = None,
    recording: Recording | None = None,
) -> Network:
    """Record, place and insert quantizers; all scales are still 1.

    Args:
        loaded: float network.
        recipe: what to do.
        sensitive: layers that stay float (`reptrt.calibrators.sensitivity`).
        recording: of `loaded`, where there is one already.

    Raises:
        OutputError: the network does not do its task; for others see `record_network`.
    """
    recording = recording or record_network(loaded, recipe)
    graph_module = copy.deepcopy(recording.float_graph)
    if recipe.softmax != "float":
        expand_attention(graph_module)
    quantize_head = recipe.quantize_head
    if quantize_head is None:
        quantize_head = loaded.task == "classification"
    placement = place_quantizers(
        graph_module.graph,
        recipe.keep_float,
        quantize_head=quantize_head,
        sensitive=sensitive or {},
        softmax=recipe.softmax,
    )
    quantized = insert_quantizers(
        graph_module,
        placement,
        weight_bits=recipe.weight_bits,
        activation_bits=recipe.activation_bits,
        first_last_bits=recipe.first_last_bits,
        branch_affines={
            name: affine.to(recipe.device) for name, affine in recording.affines.items()
        },
    )
    return Network(recording.float_graph, quantized, describe(loaded, quantized, recipe))


def code_sha256(module: nn.Module) -> str:
    """Digest of what a network does beyond its weights: its structure, and its classes' files."""
    digest = hashlib.sha256(re.sub(r"0x[0-9a-f]+", "", repr(module)).encode())
    sources = {sys.modules[type(part).__module__].__file__ for part in module.modules()}
    for source in sorted(filter(None, sources)):
        digest.update(Path(source).read_bytes())
    return digest.hexdigest()


def fixed_batch(loaded: LoadedModel, recipe: Recipe) -> int | None:
    """Batch of the files: the recipe's, or the only one that the network can run; None for any.

    Raises:
        OutputError: they contradict each other.
    """
    only = loaded.batch_size
    if only and recipe.batch_size not in (None, only):
        raise OutputError(
            f"{loaded.name}: runs on batches of {only} only; leave --batch-size"
            f" {recipe.batch_size} out, or export the model with a dynamic batch"
        )
    if only and "max_batch" in recipe.model_fields_set and recipe.max_batch > only:
        raise OutputError(
            f"{loaded.name}: runs on batches of {only} only, so --max-batch {recipe.max_batch} cannot"
            " be met; leave it out, or change what fixes the batch (the warning above names it)"
        )
    return recipe.batch_size or loaded.batch_size


@torch.no_grad()
def describe(loaded: LoadedModel, quantized: QuantizedModel, recipe: Recipe) -> ModelCard:
    """Run once in float and write down what the outputs are.

    Raises:
        OutputError: the network does not do its task.
    """
    size, batch_size = loaded.preprocess.image_size, fixed_batch(loaded, recipe)
    image = torch.zeros(batch_size or 1, *loaded.preprocess.input_shape, device=recipe.device)
    with quantized.float_mode():
        shapes = [tuple(output.shape) for output in list_outputs(quantized(image))]
    if loaded.tail is None:
        _require_task(loaded, shapes)
    strides = tuple(size[0] // shape[2] for shape in shapes if loaded.task == "detection")
    return ModelCard(
        model=loaded.name,
        task=loaded.task,
        preprocess=loaded.preprocess,
        num_classes=loaded.num_classes,
        classes=loaded.classes,
        outputs=loaded.output_names or _output_names(loaded.task, len(shapes), strides),
        strides=strides,
        batch_size=batch_size,
        cut=None if loaded.tail is None else loaded.tail.cut,
        parts=tuple(find_parts(quantized.graph_module.graph)),
    )


def _require_task(loaded: LoadedModel, shapes: Sequence[tuple[int, ...]]) -> None:
    try:
        count_classes(loaded.task, shapes, loaded.preprocess.image_size)
    except OutputError as error:
        raise OutputError(f"{loaded.name} {error}") from None


def _output_names(task: Task, count: int, strides: Sequence[int]) -> tuple[str, ...]:
    """Names for outputs that have none: `logits`, a pyramid's p3, p4, ..., or numbers."""
    if task == "classification":
        return ("logits",)
    if task == "detection":
        return tuple(f"p{stride.bit_length() - 1}" for stride in strides)
    return tuple(f"output{index}" for index in range(count))
