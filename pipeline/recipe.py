"""What to do with one model: every choice of a run, from YAML, the command line and Python.

A field is said here once: its type, bounds, default and help make the flag, the argument in Python and
the line of the YAML file. Fields stand in sections, and a stage depends on whole sections, so that none
of their fields can be forgotten.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ByteSize, ConfigDict, Field, ValidationError

from reptrt.calibrators.settings import GIBIBYTE, Effort, Reconstruction
from reptrt.engines.foreign.text import one_line, path_part
from reptrt.engines.outputs.suppression import DEPLOYMENT, MAX_CANDIDATES, Suppression
from reptrt.models.names import ONNX_SUFFIX
from reptrt.pipeline.byte_size import Bytes
from reptrt.pipeline.read_yaml import read_yaml

RECIPES = Path(__file__).parent / "recipes"
RUN_RECIPE = "recipe.yaml"
"""In the folder of a run that ended well: its recipe, whose paths are absolute."""
AUTO = "auto"
FULL_BITS = 8
Precision = Literal["fp32", "fp16"]
Device = Literal["cpu", "cuda"]
Bits = Annotated[int, Field(ge=2, le=8)]
Triple = tuple[float, float, float]
SizeRange = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""(height, width) of the smallest, the usual and the largest image."""


class RecipeError(ValueError):
    """A recipe or an option holds something that is not legal."""

    exit_code = 2


class Section(BaseModel):
    """Fields that belong together; `title` heads them in the help."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    title: ClassVar[str] = ""


class Network(Section):
    """Which network, and what its outputs mean."""

    title = "The network"

    model: str = Field(description="zoo name, timm:NAME, package.module:callable or file.onnx")
    weights: Path | None = Field(None, description="checkpoint: safetensors or a state dict")
    task: Literal["classification", "detection", "segmentation", "generic"] | None = Field(
        None, description="what the outputs of a model of your own mean; default: they tell"
    )
    requantize: bool = Field(
        False,
        description="of an ONNX file that is quantized already, take the float weights and quantize anew",
    )
    float_model: Path | None = Field(
        None,
        description="ONNX file that a quantized MODEL was made from, to compare with",
        json_schema_extra={"flag": "--float"},
    )


class Images(Section):
    """Images, and how they become the network's input; None leaves the model's own preprocessing."""

    title = "Images"

    data: Path | None = Field(
        None,
        description="calibration images: a folder, shards, .npy or .npz; or named feeds: a folder of .npz,"
        " JSON or a script of Polygraphy's",
    )
    evaluation: Path | None = Field(
        None,
        description="labelled images: ImageFolder, labels.csv, shards, COCO, or images/ and masks/",
        json_schema_extra={"flag": "--eval"},
    )
    image_size: tuple[int, int] | None = Field(None, description="height and width in pixels")
    dynamic_size: SizeRange | None = Field(
        None, description="smallest, usual and largest image, where its size stays open"
    )
    mean: Triple | None = Field(None, description="of R, G, B on the 0-1 scale")
    std: Triple | None = Field(None, description="of R, G, B on the 0-1 scale")
    layout: Literal["crop", "letterbox"] | None = Field(
        None, description="how images are fitted to the input"
    )
    channels: Literal["rgb", "bgr"] | None = Field(
        None, description="order in which the network wants them"
    )


class Quantization(Section):
    """What becomes INT8, and on how many bits."""

    title = "Quantization"

    weight_bits: Bits = Field(8, description="bits of the weights")
    activation_bits: Bits = Field(8, description="bits of the activations")
    first_last_bits: Bits | None = Field(
        8, description="fewest bits of the first and the last layers and of their inputs"
    )
    depthwise_bits: Bits | None = Field(8, description="fewest bits of depthwise weights")
    quantize: Literal["pays", "all"] = Field(
        "pays",
        description="pays: a layer is INT8 where the target is predicted to be faster for it; all: "
        "every layer that can be",
    )
    softmax: Literal["float", "uniform", "log2", "fp8"] = Field(
        "float",
        description="grid of attention's probabilities; float leaves attention float; fp8 runs all of it in"
        " FP8, where the target has that",
    )
    keep_float: tuple[str, ...] = Field((), description="patterns of layer names that stay float")
    quantize_head: bool | None = Field(
        None,
        description="quantize the last layers too; default: in classifiers, not where they set boxes",
    )
    channel_scaling: Literal["auto", "none"] = Field(
        "auto",
        description="auto: wide channels are divided in front of their quantizers, and multiplied again "
        "behind, where the layers there gain from it",
    )
    min_snr: Annotated[float, Field(ge=0)] | None = Field(
        None,
        description="dB at the outputs; the costliest layers stay float until they are reached; "
        "0 quantizes all; default at 8 bits: 20 where any part of the outputs has less than 12; in"
        " classifiers that `auto` calibrates 15, and 10",
    )


class Calibration(Section):
    """How scales are chosen."""

    title = "Calibration"

    calibrator: str = Field(AUTO, description="see `reptrt calibrators`")
    num_samples: Annotated[int, Field(ge=1)] | None = Field(
        None, description="calibration images, drawn with the seed; default: the calibrator's own"
    )
    reconstruction: Reconstruction = Field(
        Reconstruction(), description="how blocks are learned, as iterations=100,loss=l2"
    )
    effort: Effort = Field(
        "auto",
        description="of calibrators that learn; low: closed forms only; auto: learn where they do not "
        "suffice, until it stops to help; high: all steps of all blocks",
    )
    seed: Annotated[int, Field(ge=0)] = Field(0, description="of every random choice")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="where PyTorch calibrates; auto: CUDA where PyTorch has it"
    )


class Build(Section):
    """Which engine is built."""

    title = "The engine"

    target: str = Field(AUTO, description="where the engine will run; see `reptrt targets`")
    precision: Precision | None = Field(
        None, description="type of all that is not INT8; default: FP16 on a GPU"
    )
    batch_size: Annotated[int, Field(ge=1)] | None = Field(
        None, description="fixed batch of the engine; default: dynamic"
    )
    max_batch: Annotated[int, Field(ge=1)] = Field(
        8, description="largest batch of a dynamic engine"
    )
    opt_batch: Annotated[int, Field(ge=1)] = Field(
        1, description="batch that a dynamic engine is made fastest for"
    )
    workspace_limit: Annotated[Bytes, Field(gt=0)] | None = Field(
        None, description="most scratch memory of a kernel, as 1GiB"
    )
    optimization_level: Annotated[int, Field(ge=0, le=5)] | None = Field(
        None, description="0: built fastest, 5: engine fastest; TensorRT's default: 3"
    )
    version_compatible: bool = Field(
        False, description="engine for later TensorRT too; larger, may be slower"
    )
    hardware_compatible: bool = Field(
        False, description="engine for all GPUs since Ampere; may be slower"
    )


class BoxSuppression(Section):
    """Decoding and NMS inside a detector's engine."""

    title = "Boxes from the engine"

    end2end: bool = Field(False, description="a detector's engine also decodes its boxes, runs NMS")
    score_threshold: Annotated[float, Field(ge=0, lt=1)] = Field(
        DEPLOYMENT.score_threshold, description="boxes of --end2end must exceed it"
    )
    iou_threshold: Annotated[float, Field(ge=0, le=1)] = Field(
        DEPLOYMENT.iou_threshold, description="a box that overlaps a better one by more is dropped"
    )
    max_detections: Annotated[int, Field(ge=1, le=MAX_CANDIDATES)] = Field(
        DEPLOYMENT.max_detections, description="most boxes of an image with --end2end"
    )


class Gate(Section):
    """What the result has to reach."""

    title = "The gate"

    max_drop: float | None = Field(
        None,
        ge=0,
        description="most points of accuracy that INT8 may lose; layers stay float until it is kept; without"
        " labelled images, that it can lose by how far it answers as FP32 does",
    )
    min_accuracy: float | None = Field(
        None, description="least accuracy of FP32 and of INT8, as 70; default: better than chance"
    )
    min_agreement: Annotated[float, Field(ge=0, le=100)] | None = Field(
        None,
        description="least agreement of INT8 with FP32 in percent; default of a gate at 8 bits: 90 of"
        " the classes, 85 of the boxes (F1)",
    )
    force: bool = Field(
        False, description="deploy although the gate fails; the artifacts say that it did"
    )


class Machine(Section):
    """How this machine is used. Nothing here changes a result, and no stage depends on it."""

    title = "This machine"

    max_memory: Bytes = Field(
        ByteSize(2 * GIBIBYTE),
        description="memory for cached activations, as 4GiB; the rest goes to TMPDIR",
    )
    timing_cache: Path | None = Field(
        None, description="folder of kernel timings, shared by builds; default: in the user's cache"
    )
    eval_workers: Annotated[int, Field(ge=1)] = Field(
        1,
        description="processes, or tasks of a cluster, that evaluate labelled images in ONNX Runtime",
    )
    eval_ray: str | None = Field(
        None, description="spread labelled images over the cluster of Ray at this address"
    )


SECTIONS: tuple[type[Section], ...] = (
    Network, Images, Quantization, Calibration, Build, BoxSuppression, Gate, Machine,
)  # fmt: skip


class Recipe(Machine, Gate, BoxSuppression, Build, Calibration, Quantization, Images, Network):
    """One run. A zoo model may bring its own values in `pipeline/recipes/<model>.yaml`."""

    def section(self, section: type[Section]) -> dict[str, Any]:
        """Values of one section, as JSON has them."""
        return self.model_dump(mode="json", include=set(section.model_fields))

    @property
    def is_full_bits(self) -> bool:
        """Whether weights and activations have all the bits of INT8."""
        return self.weight_bits == self.activation_bits == FULL_BITS

    @property
    def suppression(self) -> Suppression | None:
        """What the engine's NMS keeps; None where the engine has none."""
        if not self.end2end:
            return None
        return Suppression(self.score_threshold, self.iou_threshold, self.max_detections)


def load_recipe(model: str, options: Mapping[str, Any], file: Path | None = None) -> Recipe:
    """Recipe of `model`: defaults, then its YAML file, then `options` that are not None.

    Args:
        model: as on the command line, or the folder of a run, which holds its recipe.
        options: field name -> value.
        file: YAML of the user's own; None looks for one that ships with the model.

    Raises:
        RecipeError: unknown key, or a value out of range.
    """
    if file is None and (Path(model) / RUN_RECIPE).is_file():
        file = Path(model) / RUN_RECIPE
        model = str(_read(file).get("model", model))
    shipped = RECIPES / f"{slug(model)}.yaml"
    source = file or (shipped if shipped.exists() and not is_file(model) else None)
    values = _read(source) if source else {}
    chosen = {name: value for name, value in options.items() if value is not None}
    written = values.get("reconstruction", {})
    if "reconstruction" in chosen:
        merged = isinstance(written, dict) and {**written, **_as_mapping(chosen["reconstruction"])}
        chosen["reconstruction"] = merged or written
    try:
        recipe = Recipe.model_validate({**values, "model": model, **chosen})
    except ValidationError as error:
        raise RecipeError(_explain(error, source)) from None
    if not recipe.end2end:
        _require_no_thresholds(recipe)
    if recipe.dynamic_size is not None:
        _require_range(recipe, *recipe.dynamic_size)
    if (recipe.requantize or recipe.float_model) and not is_file(model):
        raise RecipeError(
            "`requantize` and `float_model` are for ONNX files that are quantized already: leave them out"
        )
    return recipe


def slug(model: str) -> str:
    """Folder and file name of a model: `timm:resnet18` -> `timm-resnet18`, `my/net.onnx` -> `net`."""
    if is_file(model):
        model = Path(model).stem
    return path_part(model)


def flag(field: str) -> str:
    """Option of a recipe's field on the command line: `max_drop` -> `--max-drop`."""
    extra = Recipe.model_fields[field].json_schema_extra
    stated = extra.get("flag") if isinstance(extra, dict) else None
    return str(stated or f"--{field.replace('_', '-')}")


def _as_mapping(chosen: Mapping[str, Any] | Reconstruction) -> dict[str, Any]:
    if isinstance(chosen, Reconstruction):
        return chosen.model_dump(exclude_unset=True)
    return dict(chosen)


def is_file(model: str) -> bool:
    """Whether MODEL is the path of an ONNX file."""
    return model.lower().endswith(ONNX_SUFFIX)


def _read(path: Path) -> dict[str, Any]:
    values = read_yaml(path, RecipeError)
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise RecipeError(f"{path}: a recipe is a list of `key: value` lines")
    return {str(key): value for key, value in values.items()}


def _require_no_thresholds(recipe: Recipe) -> None:
    """Refuse thresholds that nothing would heed."""
    for name, default in vars(DEPLOYMENT).items():
        if getattr(recipe, name) != default:
            raise RecipeError(
                f"`{name}` is of `end2end`, which puts NMS into the engine: add it, or leave "
                f"`{name}` out"
            )


def _require_range(
    recipe: Recipe, smallest: tuple[int, int], usual: tuple[int, int], largest: tuple[int, int]
) -> None:
    """Refuse sizes that are in no order, or fixed at the same time."""
    if recipe.image_size is not None:
        raise RecipeError(
            "`dynamic_size` keeps the size of images open, `image_size` fixes it: leave one out"
        )
    if recipe.end2end:
        raise RecipeError("`end2end` decodes the boxes of one size: fix it with `image_size`")
    for axis in range(2):
        if not 1 <= smallest[axis] <= usual[axis] <= largest[axis]:
            raise RecipeError(
                f"`dynamic_size` {smallest}, {usual}, {largest}: give MIN,OPT,MAX with"
                " 1 <= MIN <= OPT <= MAX, as 320,640,960 or 32x64,32x320,32x640"
            )


def _explain(error: ValidationError, source: Path | None) -> str:
    first = error.errors()[0]
    key = one_line(".".join(str(part) for part in first["loc"])) or "recipe"
    where = f"{source}: " if source else ""
    if first["type"] == "extra_forbidden":
        is_nested = len(first["loc"]) > 1
        legal = Reconstruction.model_fields if is_nested else Recipe.model_fields
        close = get_close_matches(str(first["loc"][-1]), legal, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"legal: {', '.join(legal)}"
        return f"{where}unknown key {key!r}; {hint}"
    if first["type"].startswith("byte_size"):
        size = "is not a size; write 4GiB, 512MiB or a number of bytes"
        return f"{where}{key}: {one_line(first['input'])} {size}"
    return f"{where}{key}: {first['msg'].lower()} (got {one_line(first['input'])})"
