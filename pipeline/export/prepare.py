"""From MODEL to a placed, uncalibrated quantized model and the card that describes it."""

from __future__ import annotations

import copy
import hashlib
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import fx

from reptrt.calibrators.channels.rewrite import ChannelFactors, scale_channels
from reptrt.calibrators.quantized.channel_affine import ChannelAffine
from reptrt.calibrators.quantized.output_parts import find_parts
from reptrt.calibrators.quantized.placement import TRANSPOSED, WEIGHTED, place_quantizers
from reptrt.calibrators.quantized.quantized_model import QuantizedModel, insert_quantizers
from reptrt.calibrators.reconstruction.qprep import protect_merged, protect_reparameterization
from reptrt.calibrators.sensitivity import SENSITIVE
from reptrt.engines.foreign.text import one_line
from reptrt.engines.target import resolve_target
from reptrt.models.branches.merge import describe_merged
from reptrt.models.card import ModelCard
from reptrt.models.expand_attention import expand_attention
from reptrt.models.fuse import reparameterize
from reptrt.models.fuse_check import require_same_function
from reptrt.models.graph import (
    example_tensors,
    graph_sha256,
    layer_name,
    merged_layers,
    tensor_bytes,
    trace_inputs,
)
from reptrt.models.load import LoadedModel
from reptrt.models.spec import Task
from reptrt.models.task import OutputError, count_classes, list_outputs
from reptrt.pipeline.plan import Plan, choose_device, fixed_batch, make_plan
from reptrt.pipeline.recipe import Device, Recipe
from reptrt.pipeline.workspace.folder import ARTIFACTS

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recording:
    """A network as it was traced, before quantizers are placed.

    Attributes:
        float_graph: of the reparameterized network; read only.
        affines: layer -> BatchNorm of the dense branch that it was merged from.
    """

    float_graph: fx.GraphModule
    affines: Mapping[str, ChannelAffine]


@dataclass(frozen=True)
class Network:
    """A traced model with uncalibrated quantizers, and its float reference.

    Attributes:
        float_graph: the reference; calibration changes weights and biases of `quantized` only.
        quantized: the same graph with quantizers; fused attention is expanded where its products are
            quantized.
        card: preprocessing, outputs and classes of both.
    """

    float_graph: fx.GraphModule
    quantized: QuantizedModel
    card: ModelCard


def record_network(
    loaded: LoadedModel, device: Device = "cpu", batch_size: int | None = None
) -> Recording:
    """Reparameterize and trace.

    Args:
        loaded: float network.
        device: where PyTorch will run it.
        batch_size: that the graph is fixed to; None leaves it open.

    Raises:
        ReparameterizationError: a block cannot be fused, or computes something else then.
        TraceError: the network cannot be recorded.
    """
    deploy_form = reparameterize(loaded.module)
    image_size, channels = loaded.preprocess.image_size, loaded.preprocess.num_channels
    require_same_function(loaded.module, deploy_form, image_size, channels, loaded.stated_inputs)
    fused = protect_reparameterization(loaded.module, deploy_form)
    deploy_form.to(device)
    float_graph = trace_inputs(deploy_form, loaded.inputs, batch_size=batch_size)
    merged = merged_layers(float_graph)
    logger.info("%s: %s", loaded.name, describe_merged(merged))
    return Recording(float_graph, {**fused, **protect_merged(merged)})


@dataclass(frozen=True)
class Choices:
    """What the stages in front of calibration chose for a network.

    Attributes:
        sensitive: layers that stay float (`reptrt.calibrators.sensitivity`).
        costly: layers that stay float since INT8 is not faster (`reptrt.engines.cost.placement`), and
            the reason.
        apart: concats whose sources keep scales of their own.
        pools: whether average pools that feed a quantized layer read quantized values.
        channels: factors of channels in front of their quantizers (`reptrt.calibrators.channels`).
        fp8_attention: whether attention, which the plan leaves float, is in FP8.
    """

    sensitive: Collection[str] = ()
    costly: Mapping[str, str] = field(default_factory=dict)
    apart: Collection[str] = ()
    pools: bool = False
    channels: ChannelFactors = field(default_factory=dict)
    fp8_attention: bool = False


NO_CHOICES = Choices()


class ChoiceError(ValueError):
    """A file of the run is of another network."""

    exit_code = 2


def prepare_network(
    loaded: LoadedModel, plan: Plan, recording: Recording, choices: Choices = NO_CHOICES
) -> Network:
    """Place and insert quantizers; all scales are still 1.

    Args:
        loaded: float network.
        plan: what to do.
        recording: of `loaded`.
        choices: of the stages in front.

    Raises:
        OutputError: the network does not do its task.
        ChoiceError: a choice is of another network.
    """
    graph_module = copy.deepcopy(recording.float_graph)
    softmax = "fp8" if choices.fp8_attention else plan.softmax
    if softmax != "float":
        expand_attention(graph_module)
    _require_known(graph_module.graph, choices)
    placement = place_quantizers(
        graph_module.graph,
        plan.keep_float,
        quantize_head=plan.quantize_head,
        left_float={**choices.costly, **dict.fromkeys(choices.sensitive, SENSITIVE)},
        apart=choices.apart,
        softmax=softmax,
        pools=choices.pools,
    )
    quantized = insert_quantizers(
        graph_module,
        placement,
        weight_bits=plan.weight_bits,
        activation_bits=plan.activation_bits,
        first_last_bits=plan.first_last_bits,
        depthwise_bits=plan.depthwise_bits,
        branch_affines={name: affine.to(plan.device) for name, affine in recording.affines.items()},
    )
    scale_channels(quantized, choices.channels)
    return Network(recording.float_graph, quantized, describe(loaded, recording.float_graph, plan))


def _require_known(graph: fx.Graph, choices: Choices) -> None:
    """Refuse names that the network does not have: their file was changed, or is of another run."""
    nodes = {node.name for node in graph.nodes}
    layers = {layer_name(node) for node in graph.nodes if node.target in (*WEIGHTED, *TRANSPOSED)}
    for file, names, known in (
        ("sensitivity", choices.sensitive, layers),
        ("placement", choices.costly, layers),
        ("concats", choices.apart, nodes),
        ("channels", choices.channels, nodes),
    ):
        unknown = sorted(set(names) - known)
        if unknown:
            raise ChoiceError(
                f"{ARTIFACTS[file]}: names {one_line(unknown[0])!r}, which this network does not have;"
                " remove it, and calibrate again"
            )


def open_network(loaded: LoadedModel, recipe: Recipe, target: str = "tensorrt-rtx") -> Network:
    """Record, plan and prepare at once, for whoever needs no run: benchmarks and notebooks."""
    recording = record_network(loaded, choose_device(recipe), fixed_batch(loaded, recipe))
    plan = make_plan(recipe, resolve_target(target), loaded, recording.float_graph)
    return prepare_network(loaded, plan, recording)


def network_sha256(loaded: LoadedModel, recording: Recording) -> str:
    """Digest of all that calibration and export read of a network.

    That is the recorded graph with its constants, the maps of QPRep, the task and the preprocessing.
    Source files do not count: what they changed shows in the graph.
    """
    digest = hashlib.sha256(graph_sha256(recording.float_graph).encode())
    for name, affine in sorted(recording.affines.items()):
        digest.update(name.encode())
        for tensor in (affine.gain, affine.shift):
            digest.update(tensor_bytes(tensor))
    described = (loaded.task, loaded.preprocess, loaded.classes, loaded.stated_inputs)
    digest.update(repr(described).encode())
    digest.update(b"" if loaded.tail is None else loaded.tail.model)
    digest.update(b"" if loaded.quantized is None else loaded.quantized.model)
    return digest.hexdigest()


@torch.no_grad()
def describe(loaded: LoadedModel, float_graph: fx.GraphModule, plan: Plan) -> ModelCard:
    """Run the float network once and describe its outputs.

    Raises:
        OutputError: the network does not do its task.
    """
    size, batch_size = loaded.preprocess.image_size, plan.batch_size
    tensors = example_tensors(loaded.inputs, batch_size or 1, plan.device)
    shapes = [tuple(output.shape) for output in list_outputs(float_graph(*tensors))]
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
        parts=tuple(find_parts(float_graph.graph)),
        stated_accuracy=loaded.stated_accuracy,
        stated_inputs=loaded.stated_inputs,
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
