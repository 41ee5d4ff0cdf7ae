"""What to do with one model: every choice of a run, from YAML and the command line."""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ByteSize, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from reptrt.calibrators.settings import GIBIBYTE, Reconstruction
from reptrt.engines.outputs.detection import DEPLOYMENT, MAX_CANDIDATES, Suppression

RECIPES = Path(__file__).parent / "recipes"
Bits = Annotated[int, Field(ge=2, le=8)]
Triple = tuple[float, float, float]


def _whole_size(value: object) -> object:
    """Refuse what pydantic would read in part: it takes `1,5GB` for one byte."""
    if isinstance(value, str) and not re.fullmatch(r"\d*\.?\d+\s*\w*", value.strip()):
        raise PydanticCustomError("byte_size", "not a size")
    return value


class RecipeError(ValueError):
    """A recipe or an option holds something that is not legal."""

    exit_code = 2


class Recipe(BaseModel):
    """One run. A zoo model may bring its own values in `pipeline/recipes/<model>.yaml`.

    Attributes:
        model: zoo name, `timm:NAME`, `package.module:callable` or `file.onnx`.
        weights: checkpoint; None for the bundled or published one.
        data: calibration images; None for the demo's own scenes.
        evaluation: labelled images; None compares outputs only (the demo has its own scenes).
        calibrator: key of a calibrator.
        weight_bits: bits of the weights.
        activation_bits: bits of the activations.
        precision: type of everything that is not INT8; None for FP16 on a GPU, FP32 on a CPU.
        first_last_bits: least bits of the first and the last layers and of what they read; None
            treats them as all others.
        softmax: grid of attention's probabilities; its other operands get the activations' bits.
            "float" leaves attention float.
        reconstruction: of calibrators that learn; see `reptrt.calibrators.settings`.
        max_memory: most bytes of cached activations in memory; the rest goes to TMPDIR.
        num_samples: calibration images, taken evenly at random with `seed`; None for as many as
            the calibrator likes.
        seed: of every random choice.
        device: where PyTorch calibrates.
        target: key of a target, or `auto`.
        batch_size: fixed batch of the exported graph; None keeps it dynamic.
        max_batch: largest batch of a dynamic engine.
        opt_batch: batch that a dynamic engine is made fastest for.
        workspace_limit: most GPU memory that a kernel may use as scratch; None leaves it to TensorRT.
        optimization_level: 0 builds fastest, 5 looks longest for fast kernels; None for TensorRT's 3.
        timing_cache: folder of kernel timings; None for one in the user's cache folder.
        version_compatible: the engine also loads in later TensorRT; larger, perhaps slower.
        hardware_compatible: the engine also runs on other GPUs, Ampere or newer; perhaps slower.
        end2end: put decoding and NMS into the engine of a detector.
        score_threshold: of such an engine; boxes must exceed it.
        iou_threshold: of such an engine; a box that overlaps a better one by more is dropped.
        max_detections: of such an engine; rows of its outputs.
        max_drop: gate: most points of accuracy that INT8 may lose; None for no gate.
        keep_float: patterns of layer names that stay float.
        task: what the outputs of a model of the user's own mean; None lets them tell.
        layout: how images are fitted to the input; None for the model's own.
        channels: order in which the network wants them; None for the model's own.
        quantize_head: whether the layers behind which no other comes are quantized; None for yes in a
            classifier and no in others, whose prediction layers set boxes.
        min_snr: leave layers float, those that cost the most first, until the outputs reach this many
            dB with the best baseline; 0 quantizes all, None means 20 in detectors and 0 in others.
        image_size: (height, width) in pixels; None for the model's own.
        mean: per RGB channel on the 0-1 scale; None for the model's own.
        std: per RGB channel on the 0-1 scale; None for the model's own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    model: str
    weights: Path | None = None
    data: Path | None = None
    evaluation: Path | None = None
    calibrator: str = "auto"
    weight_bits: Bits = 8
    activation_bits: Bits = 8
    precision: Literal["fp32", "fp16"] | None = None
    first_last_bits: Bits | None = 8
    softmax: Literal["float", "uniform", "log2"] = "float"
    reconstruction: Reconstruction = Reconstruction()
    max_memory: Annotated[ByteSize, BeforeValidator(_whole_size)] = ByteSize(2 * GIBIBYTE)
    num_samples: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    device: Literal["cpu", "cuda"] = "cpu"
    target: str = "auto"
    batch_size: Annotated[int, Field(ge=1)] | None = None
    max_batch: Annotated[int, Field(ge=1)] = 8
    opt_batch: Annotated[int, Field(ge=1)] = 1
    workspace_limit: Annotated[ByteSize, BeforeValidator(_whole_size), Field(gt=0)] | None = None
    optimization_level: Annotated[int, Field(ge=0, le=5)] | None = None
    timing_cache: Path | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    end2end: bool = False
    score_threshold: Annotated[float, Field(ge=0, lt=1)] = DEPLOYMENT.score_threshold
    iou_threshold: Annotated[float, Field(ge=0, le=1)] = DEPLOYMENT.iou_threshold
    max_detections: Annotated[int, Field(ge=1, le=MAX_CANDIDATES)] = DEPLOYMENT.max_detections
    max_drop: float | None = None
    keep_float: tuple[str, ...] = ()
    quantize_head: bool | None = None
    min_snr: Annotated[float, Field(ge=0)] | None = None
    task: Literal["classification", "detection", "generic"] | None = None
    layout: Literal["crop", "letterbox"] | None = None
    channels: Literal["rgb", "bgr"] | None = None
    image_size: tuple[int, int] | None = None
    mean: Triple | None = None
    std: Triple | None = None

    @property
    def suppression(self) -> Suppression | None:
        """What the engine's NMS keeps; None where the engine has none."""
        if not self.end2end:
            return None
        return Suppression(self.score_threshold, self.iou_threshold, self.max_detections)


def load_recipe(model: str, options: dict[str, Any], file: Path | None = None) -> Recipe:
    """Recipe of `model`: defaults, then its YAML file, then `options` that are not None.

    Args:
        model: as on the command line.
        options: field name -> value.
        file: YAML of the user's own; None looks for one that ships with the model.

    Raises:
        RecipeError: unknown key, or a value out of range.
    """
    shipped = RECIPES / f"{slug(model)}.yaml"
    source = file or (shipped if shipped.exists() and not _is_file(model) else None)
    values = _read(source) if source else {}
    chosen = {name: value for name, value in options.items() if value is not None}
    written = values.get("reconstruction", {})
    if "reconstruction" in chosen:
        merged = isinstance(written, dict) and {**written, **chosen["reconstruction"]}
        chosen["reconstruction"] = merged or written
    values = {**values, "model": model, **chosen}
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError(_explain(error, source)) from None
    if not recipe.end2end:
        _require_no_thresholds(recipe)
    return recipe


def slug(model: str) -> str:
    """Folder and file name of a model: `timm:resnet18` -> `timm-resnet18`, `my/net.onnx` -> `net`."""
    if _is_file(model):
        model = Path(model).stem
    return re.sub(r"[^A-Za-z0-9._-]+", "-", model)


def _is_file(model: str) -> bool:
    return model.lower().endswith(".onnx")


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise RecipeError(f"{path}: not a text file in UTF-8") from None
    except yaml.YAMLError as error:
        where = " ".join(str(error).split())
        raise RecipeError(f"{path}: not valid YAML: {where}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise RecipeError(f"{path}: a recipe is a list of `key: value` lines")
    return {str(key): value for key, value in values.items()}


def _require_no_thresholds(recipe: Recipe) -> None:
    """Refuse thresholds that nothing would heed."""
    for name, default in vars(DEPLOYMENT).items():
        if getattr(recipe, name) != default:
            flag = name.replace("_", "-")
            raise RecipeError(
                f"--{flag} is of --end2end, which puts NMS into the engine: add it, or leave --{flag} out"
            )


def _explain(error: ValidationError, source: Path | None) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"]) or "recipe"
    where = f"{source}: " if source else ""
    if first["type"] == "extra_forbidden":
        is_nested = len(first["loc"]) > 1
        legal = Reconstruction.model_fields if is_nested else Recipe.model_fields
        close = get_close_matches(str(first["loc"][-1]), legal, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"legal: {', '.join(legal)}"
        return f"{where}unknown key {key!r}; {hint}"
    if first["type"].startswith("byte_size"):
        size = "is not a size; write 4GiB, 512MiB or a number of bytes"
        return f"{where}{key}: {first['input']!r} {size}"
    return f"{where}{key}: {first['msg'].lower()} (got {first['input']!r})"
