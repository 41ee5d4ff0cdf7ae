"""One recipe on its way: what its stages share, read or made when one of them first needs it."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from reptrt.calibrators.base import CalibrationResult
from reptrt.calibrators.channels.file import load_factors
from reptrt.calibrators.channels.rewrite import ChannelFactors
from reptrt.calibrators.progress import Progress
from reptrt.calibrators.sensitivity import Sensitivity
from reptrt.calibrators.state import read_result
from reptrt.engines.artifacts import file_sha256
from reptrt.engines.cost.placement import CostPlacement
from reptrt.engines.foreign.text import visible
from reptrt.engines.target import Target
from reptrt.models.card import ModelCard
from reptrt.models.inputs import other_sizes
from reptrt.models.load import LoadedModel, load_model
from reptrt.models.registry import find_model
from reptrt.models.spec import Task
from reptrt.pipeline.data.array_images import is_prepared
from reptrt.pipeline.data.batches import Draw
from reptrt.pipeline.data.datasets import (
    DataError,
    EvaluationSet,
    open_evaluation,
    open_samples,
)
from reptrt.pipeline.data.demo_data import SCENES, calibration_scenes, evaluation_scenes
from reptrt.pipeline.data.feeds import FeedSet
from reptrt.pipeline.data.in_memory import MetricFunction
from reptrt.pipeline.data.stored_feeds import STORED, is_feed_source, sample_feed
from reptrt.pipeline.export.prepare import (
    Choices,
    Network,
    Recording,
    describe,
    network_sha256,
    prepare_network,
    record_network,
)
from reptrt.pipeline.model_card import read_card
from reptrt.pipeline.plan import Plan, choose_device, fixed_batch, make_plan
from reptrt.pipeline.quantized_file import FloatOrigin
from reptrt.pipeline.recipe import Recipe
from reptrt.pipeline.stated_preprocess import stated_preprocess
from reptrt.pipeline.validation.likeness import HeldOut
from reptrt.pipeline.validation.remembered import OutputMemory
from reptrt.pipeline.validation.shards import Spread
from reptrt.pipeline.validation.validate import ValidationSetup
from reptrt.pipeline.workspace.folder import (
    Workspace,
    has_made,
    read_optional,
    require,
)
from reptrt.pipeline.workspace.run_records import Inputs, made_from, sha256_or_none
from reptrt.pipeline.workspace.stage import Stage

logger = logging.getLogger(__name__)

NOT_SENSITIVE = Sensitivity({})


@dataclass(frozen=True)
class Run:
    """One recipe on its way through the stages.

    Attributes:
        recipe: what the user asked for.
        target: where the engine will run.
        workspace: where the files go.
        command: what the user typed, for records and report.
        progress: called as work advances.
        model: the network, where it is in memory; None reads `recipe.model`.
        measure: labelled images or a metric in memory; None reads `recipe.evaluation`.
        memory: what float networks answered on labelled images.
    """

    recipe: Recipe
    target: Target
    workspace: Workspace
    command: str
    progress: Progress
    model: LoadedModel | None = None
    measure: EvaluationSet | None = None
    memory: OutputMemory = field(default_factory=OutputMemory)

    @property
    def scenes(self) -> Path:
        """Where the demo's generated images are kept, shared by all runs."""
        return self.workspace.folder.parents[2] / SCENES

    @cached_property
    def loaded(self) -> LoadedModel:
        """Float network with its weights; read when a stage first needs it."""
        loaded = self.model or self._load()
        require_measurable(self.recipe, loaded.task, self.measure)
        return loaded

    def _load(self) -> LoadedModel:
        recipe = self.recipe
        overrides = stated_preprocess(recipe)
        return load_model(
            recipe.model,
            recipe.weights,
            overrides,
            lambda done, total: self.progress("download weights", done, total or 0),
            recipe.task,
            sample_feed(recipe.data, self.stored, recipe.num_samples),
            FloatOrigin.of(recipe),
        )

    @cached_property
    def recording(self) -> Recording:
        """What the network computes: its kind is read from it, and it becomes `network`."""
        batch_size = fixed_batch(self.loaded, self.recipe)
        return record_network(self.loaded, choose_device(self.recipe), batch_size)

    @cached_property
    def plan(self) -> Plan:
        """The recipe with every choice made."""
        return make_plan(self.recipe, self.target, self.loaded, self.recording.float_graph)

    @property
    def final_plan(self) -> Plan:
        """The plan, and how attention is quantized in the end."""
        return self.plan.model_copy(update={"softmax": "fp8"}) if self.fp8_attention else self.plan

    @cached_property
    def card(self) -> ModelCard:
        """What goes into the network, and what comes out."""
        return describe(self.loaded, self.recording.float_graph, self.plan)

    def make_network(self) -> Network:
        """Traced network with quantizers, uncalibrated, as the stages in front of calibration chose."""
        return prepare_network(self.loaded, self.plan, self.recording, self.choices)

    @cached_property
    def network_sha256(self) -> str:
        """Digest of what the network computes, its constants, and how images become its input."""
        return network_sha256(self.loaded, self.recording)

    @property
    def choices(self) -> Choices:
        """What the stages in front of calibration chose."""
        return replace(self.placed, sensitive=self.sensitive.layers)

    @property
    def placed(self) -> Choices:
        """What was chosen before the layers that stay float for the sake of accuracy."""
        return Choices(
            *((), self.costly, self.apart, self.pools, self.channels),
            fp8_attention=self.fp8_attention,
        )

    @property
    def costly(self) -> dict[str, str]:
        """Layers that stay FP16 since INT8 is not faster, and why."""
        layers = self.priced.float_layers if self.priced else {}
        return {name: price.reason for name, price in layers.items()}

    @property
    def pools(self) -> bool:
        """Whether average pools are INT8 where they can be."""
        return self.priced is not None and self.priced.pools

    @property
    def fp8_attention(self) -> bool:
        """Whether attention is in FP8, since that is faster, and accurate enough so far."""
        return self.is_faster_in_fp8 and not self.sensitive.float_attention

    @property
    def is_faster_in_fp8(self) -> bool:
        """Whether attention in FP8 was tried, and is predicted faster."""
        return self.priced is not None and self.priced.fp8_attention

    @property
    def is_float(self) -> bool:
        """Whether no layer is quantized, since INT8 is faster for none."""
        return self.priced is not None and not self.priced.savings

    @property
    def priced(self) -> CostPlacement | None:
        """What the stage `placement` found; None where nothing has a price."""
        return read_optional(self.workspace.placement, "placement", CostPlacement)

    @property
    def sensitive(self) -> Sensitivity:
        """Layers that stay float, as the stage `sensitivity` found; none where it did not run."""
        found = read_optional(self.workspace.sensitivity, "sensitivity", Sensitivity)
        return found or NOT_SENSITIVE

    @property
    def apart(self) -> list[str]:
        """Concats whose sources keep their own scales, as the stage `concats` found."""
        return read_optional(self.workspace.concats, "concats", list[str]) or []

    @property
    def facts(self) -> dict[str, object]:
        """What the quantized file says of itself, once it is calibrated."""
        plan, calibration = self.plan, read_result(self.workspace.calibration)
        is_own = self.model is None and self.recipe.weights is None
        licence = find_model(plan.model).licence if is_own else None
        return {
            **({"weights_licence": licence} if licence else {}),
            "model": visible(plan.model),
            "calibrator": calibration.method,
            "weight_bits": plan.weight_bits,
            "activation_bits": plan.activation_bits,
            "num_samples": calibration.num_samples,
            "seed": plan.seed,
        }

    @property
    def channels(self) -> ChannelFactors:
        """Factors of channels in front of their quantizers, as the stage `channels` chose; none without it."""
        path = self.workspace.channels
        return load_factors(require(path, "channels")) if has_made(path, "channels") else {}

    @property
    def engine_onnx(self) -> Path:
        """What the engine is built from.

        Raises:
            WorkspaceError: it is not what was written there.
        """
        files = self.workspace
        if self.recipe.end2end:
            return files.end2end_onnx
        return require(files.cut_onnx, "tail") if self.is_cut else files.trt_onnx

    @property
    def is_cut(self) -> bool:
        """Whether the engine ends in front of the tail of this very model (`cut_tail`)."""
        source = made_from(self.workspace.folder, "tail", "trt_onnx")
        return source is not None and source == sha256_or_none(self.workspace.trt_onnx)

    @property
    def validation_setup(self) -> ValidationSetup:
        """What is validated, and how it runs."""
        recipe = self.recipe
        batch_size = read_card(self.workspace.trt_onnx).batch_size
        return ValidationSetup(
            self.workspace,
            self.target,
            batch_size,
            recipe.suppression,
            recipe.max_batch,
            Spread(recipe.eval_workers, recipe.eval_ray),
            is_quantized_file=self.plan.is_quantized,
            reference="file" if self.plan.is_quantized and not recipe.float_model else "float",
            memory=self.memory,
        )

    @property
    def stored(self) -> Path:
        """Where samples are kept that come from memory, a script or Polygraphy's JSON."""
        return self.workspace.folder.parents[2] / STORED

    @property
    def calibration_result(self) -> CalibrationResult | None:
        """What the calibrator did; None where a file brings its own scales.

        Raises:
            WorkspaceError: it has not run.
        """
        if self.plan.is_quantized:
            return None
        return read_result(require(self.workspace.calibration, "calibrate"))

    @property
    def exported_from(self) -> dict[str, object]:
        """What the exported files must be made from."""
        made = {"network": self.network_sha256, "precision": self.plan.precision}
        if self.plan.is_quantized:
            return {**made, "as_it_is": True}
        calibration = require(self.workspace.calibration, "calibrate")
        return {**made, "calibration": file_sha256(calibration)}

    @cached_property
    def samples(self) -> FeedSet:
        """What is calibrated with."""
        plan, loaded = self.plan, self.loaded
        folder = plan.data or calibration_scenes(plan.model, self.scenes)
        images = open_samples(
            folder, loaded.inputs, loaded.preprocess, self.stored, Draw(plan.num_samples, plan.seed)
        )
        asked = self.recipe.num_samples
        if asked and len(images) < asked:
            text = "%s: has %d images that can be used, `num_samples` asks for %d"
            logger.warning(text, folder, len(images), asked)
        return images

    @cached_property
    def held_out(self) -> HeldOut:
        """What is judged by where there are no labels: images that `samples` left, if those are enough."""
        plan, loaded = self.plan, self.loaded
        if plan.data is None:
            return HeldOut(self.samples, len(self.samples))
        left = Draw(plan.num_samples, plan.seed, is_rest=True)
        found = open_samples(plan.data, loaded.inputs, loaded.preprocess, self.stored, left)
        names = {self.samples.name_of(index) for index in range(len(self.samples))}
        shared = sum(found.name_of(index) in names for index in range(len(found)))
        return HeldOut(found, 0 if plan.is_quantized else shared)

    def samples_of_other_sizes(self, card: ModelCard) -> dict[str, FeedSet]:
        """`at 320x320` -> the pictures in that size, for both ends of what stays open."""
        plan, found = self.plan, {}
        folder = plan.data or calibration_scenes(plan.model, self.scenes)
        if is_feed_source(folder) or is_prepared(folder):
            return {}
        for inputs, size in zip(
            other_sizes(card.inputs),
            (card.preprocess.smallest, card.preprocess.largest),
            strict=False,
        ):
            if size is not None:
                sized = replace(card.preprocess, image_size=size)
                height, width = size
                found[f"at {height}x{width}"] = open_samples(
                    folder, inputs, sized, self.stored, Draw(plan.num_samples, plan.seed)
                )
        return found

    def stage(self, name: str, inputs: Inputs, *artifacts: str, shared: bool = False) -> Stage:
        """Stage `name` that writes the workspace's `artifacts`; see `Stage` for `shared`."""
        paths = [getattr(self.workspace, artifact) for artifact in artifacts]
        return Stage(name, self.command, self.recipe.seed, inputs, paths, shared)


def open_labelled(run: Run, network: ModelCard | LoadedModel) -> EvaluationSet | None:
    """Labelled images, or the metric, of this run; None where there are none.

    Raises:
        DataError: they are not what the network wants, or it does nothing that could be measured.
    """
    if run.measure is not None:
        return run.measure
    require_measurable(run.recipe, network.task)
    folder = run.recipe.evaluation or evaluation_scenes(run.recipe.model, run.scenes)
    if folder is None:
        return None
    if len(network.inputs) > 1:
        shown = "; ".join(one.describe() for one in network.inputs)
        raise DataError(
            f"{run.recipe.model}: reads {shown}, and labelled images feed one input: leave `evaluate`"
            " out, or measure it with a function of your own (in Python)"
        )
    return open_evaluation(
        folder, network.task, network.preprocess, network.num_classes, network.classes
    )


def require_measurable(recipe: Recipe, task: Task, measure: EvaluationSet | None = None) -> None:
    """Refuse to measure the accuracy of outputs whose meaning is unknown.

    Raises:
        DataError: the recipe asks for it.
    """
    names = {
        "evaluation": "`evaluate`",
        "max_drop": "`max_drop`",
        "min_agreement": "`min_agreement`",
    }
    options = [(name, getattr(recipe, field)) for field, name in names.items()]
    asked = [name for name, value in options if value is not None]
    if task == "generic" and asked and not isinstance(measure, MetricFunction):
        raise DataError(
            f"{recipe.model}: the meaning of its outputs is unknown, so it has no accuracy for"
            f" {' and '.join(asked)}: leave them out, give `task` (classification, detection or segmentation), or"
            " measure it with a function of your own (in Python)"
        )
