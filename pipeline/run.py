"""One recipe on its way: what its stages share, read or made when one of them first needs it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import fx

from reptrt.calibrators.auto import choose_calibrator
from reptrt.calibrators.base import Progress
from reptrt.calibrators.registry import AUTO, create_calibrator
from reptrt.calibrators.settings import Reconstruction
from reptrt.engines.form import Form, form_for
from reptrt.engines.target import Target
from reptrt.models.load import LoadedModel, load_model
from reptrt.models.spec import PreprocessOverrides, Task
from reptrt.pipeline.data.datasets import (
    DataError,
    ImageSet,
    open_images,
)
from reptrt.pipeline.data.demo_data import calibration_scenes
from reptrt.pipeline.export.export import Precision
from reptrt.pipeline.export.prepare import Network, Recording, prepare_network, record_network
from reptrt.pipeline.model_card import read_card
from reptrt.pipeline.recipe import Recipe
from reptrt.pipeline.validation.validate import Trial
from reptrt.pipeline.workspace import Stage, Workspace, read_artifact

DETECTOR_SNR = 20.0
"""Of a detector's outputs, in dB: what YOLOv6Lite needs (docs/results.md)."""


@dataclass(frozen=True)
class Run:
    """One recipe on its way through the stages.

    Attributes:
        recipe: what to do.
        target: where the engine will run.
        workspace: where the files go.
        command: what the user typed, for sidecars and report.
        progress: called as work advances.
    """

    recipe: Recipe
    target: Target
    workspace: Workspace
    command: str
    progress: Progress

    @property
    def scenes(self) -> Path:
        """Where the demo's generated images are kept, shared by all runs."""
        return self.workspace.folder.parents[2] / "demo-scenes"

    @cached_property
    def loaded(self) -> LoadedModel:
        """Float network with its weights; read when a stage first needs it."""
        recipe = self.recipe
        overrides = PreprocessOverrides(
            recipe.image_size, recipe.mean, recipe.std, recipe.layout, recipe.channels
        )
        loaded = load_model(
            recipe.model,
            recipe.weights,
            overrides,
            lambda done, total: self.progress("download weights", done, total or 0),
            recipe.task,
        )
        require_measurable(recipe, loaded.task)
        return loaded

    @cached_property
    def recording(self) -> Recording:
        """What the network computes: its kind is read from it, and it becomes `network`."""
        return record_network(self.loaded, self.recipe)

    @cached_property
    def network(self) -> Network:
        """Traced network with quantizers; uncalibrated when first made."""
        return prepare_network(self.loaded, self.recipe, self.sensitive, self.recording)

    @property
    def sensitive(self) -> dict[str, float]:
        """Layers that stay float, as the stage `sensitivity` found; none where it did not run."""
        path = self.workspace.sensitivity
        return read_artifact(path, "calibrate") if path.exists() else {}

    @property
    def min_snr(self) -> float:
        """SNR at the outputs, in dB, for which layers stay float; 0 quantizes them all."""
        if self.recipe.min_snr is not None:
            return self.recipe.min_snr
        return DETECTOR_SNR if self.loaded.task == "detection" else 0.0

    @cached_property
    def calibrator(self) -> str:
        """How scales are chosen: what `auto` stands for, or what the recipe says."""
        recipe = self.recipe
        if recipe.calibrator != AUTO:
            return recipe.calibrator
        bits = min(recipe.weight_bits, recipe.activation_bits)
        return choose_calibrator(self.loaded.module, self.recording.float_graph.graph, bits)

    @property
    def reconstruction(self) -> Reconstruction:
        """How calibrators learn; a graph from a file has no blocks but its chains."""
        chosen = self.recipe.reconstruction
        is_imported = isinstance(self.loaded.module, fx.GraphModule)
        if not is_imported or "units" in chosen.model_fields_set:
            return chosen
        return chosen.model_copy(update={"units": "chains"})

    @cached_property
    def precision(self) -> Precision:
        """Type of everything that is not INT8: what the recipe says, or what suits the target."""
        on_gpu = self.target.backend != "onnxruntime"
        return self.recipe.precision or ("fp16" if on_gpu else "fp32")

    @property
    def form(self) -> Form:
        """How scales are written in the graph that is built."""
        return form_for(self.target.backend, half=self.precision == "fp16")

    @property
    def engine_onnx(self) -> Path:
        """What the engine is built from."""
        return self.workspace.end2end_onnx if self.recipe.end2end else self.workspace.trt_onnx

    @property
    def trial(self) -> Trial:
        """What is validated, and how it runs."""
        recipe = self.recipe
        batch_size = read_card(self.workspace.trt_onnx).batch_size
        return Trial(self.workspace, self.target, batch_size, recipe.suppression, recipe.max_batch)

    @cached_property
    def images(self) -> ImageSet:
        """Calibration images."""
        recipe = self.recipe
        folder = recipe.data or calibration_scenes(recipe.model, self.scenes)
        limit = recipe.num_samples or create_calibrator(self.calibrator).default_num_samples
        return open_images(folder, self.loaded.preprocess, limit=limit, seed=recipe.seed)

    def stage(
        self, name: str, inputs: dict[str, Any], *artifacts: str, shared: bool = False
    ) -> Stage:
        """Stage `name` that writes the workspace's `artifacts`; see `Stage` for `shared`."""
        paths = [getattr(self.workspace, artifact) for artifact in artifacts]
        return Stage(name, self.command, self.recipe.seed, inputs, paths, shared)


def require_measurable(recipe: Recipe, task: Task) -> None:
    """Refuse to measure the accuracy of outputs whose meaning is unknown.

    Raises:
        DataError: the recipe asks for it.
    """
    asked = [
        flag
        for flag, value in (("--eval", recipe.evaluation), ("--max-drop", recipe.max_drop))
        if value is not None
    ]
    if task == "generic" and asked:
        raise DataError(
            f"{recipe.model}: the meaning of its outputs is unknown, so it has no accuracy for"
            f" {' and '.join(asked)}: leave them out, or say --task classification or detection"
        )
