"""From MODEL to a placed, uncalibrated quantized model and the card that describes it."""

from __future__ import annotations

import copy
import hashlib
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import fx, nn

from calibrators.placement import place_quantizers
from calibrators.qprep import protect_reparameterization
from calibrators.quantized_model import QuantizedModel, insert_quantizers
from engines.target import MissingComponentError
from models.attention import expand_attention
from models.fuse import reparameterize
from models.graph import trace
from models.load import LoadedModel
from models.spec import Preprocess
from pipeline.model_card import ModelCard
from pipeline.recipe import Recipe


class OutputError(ValueError):
    """The network returns something else than its task promises."""

    exit_code = 2


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


def prepare_network(loaded: LoadedModel, recipe: Recipe) -> Network:
    """Reparameterize, trace, place and insert quantizers; all scales are still 1.

    Raises:
        TraceError, OutputError: the network cannot be recorded, or does not do its task.
        MissingComponentError: `recipe.device` is not here.
    """
    if recipe.device == "cuda" and not torch.cuda.is_available():
        raise MissingComponentError(
            "--device cuda: PyTorch finds no CUDA GPU here; install its driver and a CUDA build of "
            "PyTorch, or calibrate with --device cpu"
        )
    deploy_form = reparameterize(loaded.module)
    affines = protect_reparameterization(loaded.module, deploy_form)
    deploy_form.to(recipe.device)
    image_size = loaded.preprocess.image_size
    graph_module = trace(deploy_form, image_size, batch_size=recipe.batch_size)
    float_graph = copy.deepcopy(graph_module)
    if recipe.softmax != "float":
        expand_attention(graph_module)
    quantize_head = recipe.quantize_head
    if quantize_head is None:
        quantize_head = loaded.task == "classification"
    placement = place_quantizers(
        graph_module.graph,
        recipe.keep_float,
        quantize_head=quantize_head,
        softmax=recipe.softmax,
    )
    quantized = insert_quantizers(
        graph_module,
        placement,
        weight_bits=recipe.weight_bits,
        activation_bits=recipe.activation_bits,
        first_last_bits=recipe.first_last_bits,
        branch_affines={name: affine.to(recipe.device) for name, affine in affines.items()},
    )
    return Network(float_graph, quantized, describe(loaded, quantized, recipe))


def code_sha256(module: nn.Module) -> str:
    """Digest of what a network does beyond its weights: its structure, and its classes' files."""
    digest = hashlib.sha256(re.sub(r"0x[0-9a-f]+", "", repr(module)).encode())
    sources = {sys.modules[type(part).__module__].__file__ for part in module.modules()}
    for source in sorted(filter(None, sources)):
        digest.update(Path(source).read_bytes())
    return digest.hexdigest()


@torch.no_grad()
def describe(loaded: LoadedModel, quantized: QuantizedModel, recipe: Recipe) -> ModelCard:
    """Run once in float and write down what the outputs are."""
    size = loaded.preprocess.image_size
    image = torch.zeros(recipe.batch_size or 1, 3, *size, device=recipe.device)
    with quantized.float_mode():
        shapes = [tuple(output.shape) for output in quantized(image)]
    outputs, strides = (
        (("logits",), ())
        if loaded.task == "classification"
        else _pyramid(shapes, loaded.preprocess)
    )
    if len(outputs) != len(shapes):
        raise OutputError(
            f"{loaded.name}: a classifier returns one tensor [N, classes], this network returns "
            f"{len(shapes)} of shapes {shapes}"
        )
    return ModelCard(
        model=loaded.name,
        task=loaded.task,
        preprocess=loaded.preprocess,
        num_classes=loaded.num_classes,
        classes=loaded.classes,
        outputs=outputs,
        strides=strides,
    )


def _pyramid(
    shapes: list[tuple[int, ...]], preprocess: Preprocess
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names p3, p4, ... and strides of a detector's maps [N, classes + 4, h, w]."""
    strides = tuple(preprocess.image_size[0] // shape[2] for shape in shapes)
    return tuple(f"p{stride.bit_length() - 1}" for stride in strides), strides
