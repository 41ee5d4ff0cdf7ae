"""The plan of a run: its recipe with every choice made, so that nothing is decided anywhere else."""

from __future__ import annotations

import hashlib
import json

import torch
from torch import fx

from reptrt.calibrators.auto import choose_calibrator, is_transformer
from reptrt.calibrators.names import AUTO
from reptrt.calibrators.quantized.find_attention import has_attention
from reptrt.calibrators.registry import create_calibrator
from reptrt.calibrators.settings import NO_CALIBRATOR, Reconstruction, Settings
from reptrt.engines.form import Form, form_for
from reptrt.engines.target import MissingComponentError, Target
from reptrt.models.graph import merged_layers
from reptrt.models.load import LoadedModel
from reptrt.models.onnx_import.as_is import QuantizedFile
from reptrt.models.spec import Task
from reptrt.models.task import OutputError
from reptrt.pipeline.recipe import Device, Precision, Quantization, Recipe, RecipeError

AIMED_SNR: dict[Task, float] = {
    "classification": 15.0, "detection": 20.0, "segmentation": 20.0, "generic": 20.0
}  # fmt: skip
"""dB at the outputs, mean over them, until which layers are left float; 20 is what YOLOv6Lite needs
(docs/results.md)."""
LEAST_SNR: dict[Task, float] = {
    "classification": 10.0, "detection": 12.0, "segmentation": 12.0, "generic": 12.0
}  # fmt: skip
"""dB of every part of the outputs below which quality is called low. At 7 to 9 dB, 12 to 18 % of a
classifier's images change their class (docs/results.md)."""
_COMPARED = 16
"""Images on which a file that brings its own scales is compared."""


class Plan(Recipe):
    """A recipe with nothing left open: fields that may be None or `auto` there have their value here.

    The report shows it, the log holds it, and stages depend on its sections.
    """

    calibrator: str
    num_samples: int
    device: Device
    precision: Precision
    quantize_head: bool
    min_snr: float
    least_snr: float
    """Below it, in dB, an output's quality is low: `min_snr` where the recipe states it."""
    form: Form = "channel-scales"
    is_quantized: bool = False
    """The model is a file that brings its own scales, which stay."""
    may_use_fp8: bool = False
    """Whether attention may be in FP8, where that is faster and the accuracy that is asked for allows it."""
    threads: int = 1
    """Of PyTorch: sums are added in another order on another number, and learning takes another path."""

    @property
    def sha256(self) -> str:
        """Hex digest of every choice."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def choose_device(recipe: Recipe) -> Device:
    """Where PyTorch calibrates.

    Raises:
        MissingComponentError: the recipe asks for CUDA, and PyTorch finds none here.
    """
    has_cuda = torch.cuda.is_available()
    if recipe.device == "cuda" and not has_cuda:
        raise MissingComponentError(
            '`device="cuda"`: PyTorch finds no CUDA GPU here; install its driver and a CUDA build of '
            'PyTorch, or calibrate with `device="cpu"`'
        )
    if recipe.device == "auto":
        return "cuda" if has_cuda else "cpu"
    return recipe.device


def fixed_batch(loaded: LoadedModel, recipe: Recipe) -> int | None:
    """Batch size of the exported files: the recipe's, else the network's fixed one; None for a dynamic batch.

    Raises:
        OutputError: the recipe asks for another batch, or a larger one, than the network's fixed one.
    """
    if recipe.batch_size and loaded.batch_size and recipe.batch_size != loaded.batch_size:
        raise OutputError(
            f"{loaded.name}: runs on batches of {loaded.batch_size} only, so"
            f" `batch_size={recipe.batch_size}` cannot be met: leave it out, or change what fixes the"
            " batch, which a warning names"
        )
    if loaded.batch_size and _asks_for_more(recipe, loaded.batch_size):
        raise OutputError(
            f"{loaded.name}: runs on batches of {loaded.batch_size} only, so"
            f" `max_batch={recipe.max_batch}` cannot be met: leave it out, or change what fixes the"
            " batch, which a warning names"
        )
    return recipe.batch_size or loaded.batch_size


def _asks_for_more(recipe: Recipe, batch_size: int) -> bool:
    return "max_batch" in recipe.model_fields_set and recipe.max_batch > batch_size


def make_plan(
    recipe: Recipe, target: Target, loaded: LoadedModel, float_graph: fx.GraphModule
) -> Plan:
    """Make every choice that `recipe` leaves open.

    Args:
        recipe: what the user said.
        target: where the engine will run.
        loaded: the float network.
        float_graph: what it computes.

    Raises:
        RecipeError: it asks for what the target, or a file that is quantized already, does not have.
    """
    if loaded.quantized is not None:
        return _plan_as_it_is(recipe, target, loaded, loaded.quantized)
    if recipe.softmax == "fp8" and not target.fp8:
        raise RecipeError(
            f"`softmax=fp8`: {target.name} has no FP8, which compute capability 8.9 and newer have: choose"
            " `softmax=float`, or such a target (`reptrt targets` lists them)"
        )
    calibrator, bits = recipe.calibrator, min(recipe.weight_bits, recipe.activation_bits)
    if calibrator == AUTO:
        calibrator = choose_calibrator(
            loaded.module, float_graph.graph, bits, is_merged=bool(merged_layers(float_graph))
        )
    settings = Settings(recipe.seed)
    is_classifier = loaded.task == "classification"
    precision = recipe.precision or ("fp32" if target.backend == "onnxruntime" else "fp16")
    choices = {
        "calibrator": calibrator,
        "num_samples": recipe.num_samples
        or create_calibrator(calibrator, settings).usual_num_samples(bits),
        "device": choose_device(recipe),
        "target": target.name,
        "precision": precision,
        "threads": torch.get_num_threads(),
        "form": form_for(target.backend, half=precision == "fp16"),
        "batch_size": fixed_batch(loaded, recipe),
        "quantize_head": is_classifier if recipe.quantize_head is None else recipe.quantize_head,
        "quantize": recipe.quantize if _has_price(target) else "all",
        "channel_scaling": "none" if is_transformer(float_graph.graph) else recipe.channel_scaling,
        "min_snr": aimed_snr(recipe, loaded.task) if recipe.min_snr is None else recipe.min_snr,
        "least_snr": recipe.min_snr or LEAST_SNR[loaded.task],
        "reconstruction": _choose_units(recipe.reconstruction, loaded),
        "may_use_fp8": _may_use_fp8(recipe, target, float_graph),
    }
    return Plan.model_validate({**dict(recipe), **choices})


def aimed_snr(recipe: Recipe, task: Task) -> float:
    """What layers are left float for, where nobody says: nothing at fewer bits, which somebody asked for.

    Nor in a classifier with a calibrator of the user's choice: calibrators are compared on those.
    """
    is_open = task != "classification" or recipe.calibrator == AUTO
    return AIMED_SNR[task] if task == "detection" or (recipe.is_full_bits and is_open) else 0.0


def _plan_as_it_is(
    recipe: Recipe, target: Target, loaded: LoadedModel, file: QuantizedFile
) -> Plan:
    """The plan for a file that brings its own scales: it chooses no scale, no placement and no form.

    Raises:
        RecipeError: the recipe chooses one.
    """
    choosing = {*Quantization.model_fields, "calibrator", "precision", "reconstruction"}
    asked = sorted(choosing & recipe.model_fields_set)
    said = {"calibrator": recipe.calibrator == AUTO, "quantize": recipe.quantize == "all"}
    asked = [name for name in asked if not said.get(name)]
    if asked:
        raise RecipeError(
            f"{recipe.model}: is quantized already, and stays as it is: leave"
            f" {', '.join(f'`{name}`' for name in asked)} out, or start from the float weights that it"
            " implies, with `requantize=True`"
        )
    choices = {
        "calibrator": NO_CALIBRATOR,
        "is_quantized": True,
        "num_samples": recipe.num_samples or _COMPARED,
        "device": choose_device(recipe),
        "target": target.name,
        "precision": "fp16" if file.is_half else "fp32",
        "threads": torch.get_num_threads(),
        "batch_size": fixed_batch(loaded, recipe),
        "quantize": "all",
        "quantize_head": True,
        "min_snr": 0.0,
        "least_snr": LEAST_SNR[loaded.task],
    }
    return Plan.model_validate({**dict(recipe), **choices})


def _may_use_fp8(recipe: Recipe, target: Target, float_graph: fx.GraphModule) -> bool:
    """Whether FP8 is tried for attention: within an accuracy that is stated, and where nobody says otherwise."""
    is_open = recipe.max_drop is not None and "softmax" not in recipe.model_fields_set
    return is_open and target.fp8 and _has_price(target) and has_attention(float_graph.graph)


def _has_price(target: Target) -> bool:
    """Whether there is a data sheet by which engines for `target` are priced."""
    return target.backend != "onnxruntime" and target.data_sheet is not None


def _choose_units(chosen: Reconstruction, loaded: LoadedModel) -> Reconstruction:
    """A graph from a file has no modules that say what a block is: its chains do."""
    is_imported = isinstance(loaded.module, fx.GraphModule)
    if not is_imported or "units" in chosen.model_fields_set:
        return chosen
    return chosen.model_copy(update={"units": "chains"})
