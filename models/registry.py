"""Every name that a user can give as MODEL, and what stands behind it.

A name is one of the zoo's (`list_models`), `timm:NAME` for any model of timm, or
`package.module:callable` for a user's own network.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path

import timm
from torch import nn

from models import timm_zoo, yolov6
from models.spec import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ModelSpec,
    Preprocess,
    PreprocessOverrides,
    PublishedWeights,
)

__all__ = [
    "ModelSpec",
    "Preprocess",
    "PreprocessOverrides",
    "PublishedWeights",
    "UnknownModelError",
    "find_model",
    "list_models",
]

_DETECTION = Preprocess(
    image_size=(640, 640), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), layout="letterbox"
)
_USER_CLASSIFIER = Preprocess(
    image_size=(224, 224), mean=IMAGENET_MEAN, std=IMAGENET_STD, crop_pct=0.875
)
_DEMO_WEIGHTS = Path(__file__).parent / "demo" / "yolov6n_demo.safetensors"
_COCO_CLASSES = 80
_DEFAULT_CLASSES = 1000


class UnknownModelError(LookupError):
    """MODEL names nothing that can be built."""

    exit_code = 2


def find_model(name: str) -> ModelSpec:
    """Return what `name` stands for.

    Args:
        name: A zoo name, `timm:NAME` or `package.module:callable`. The callable takes nothing or
            `num_classes`, and returns a classifier; the current folder is importable.

    Raises:
        UnknownModelError: Nothing has that name; the message lists the nearest ones.
    """
    if name.startswith("timm:"):
        return _find_timm(name)
    if ":" in name:
        return _find_user_model(name)
    if name in timm_zoo.ZOO:
        return timm_zoo.zoo_spec(name)
    if name in _DETECTORS:
        return _DETECTORS[name]
    known = [*_DETECTORS, *timm_zoo.ZOO]
    nearest = [*difflib.get_close_matches(name, known), *_timm_names_like(name)]
    raise UnknownModelError(
        f"unknown model {name!r}{_did_you_mean(nearest)}; MODEL is a zoo name"
        " (`reptrt models` lists them), timm:NAME or package.module:callable"
    )


def list_models() -> tuple[ModelSpec, ...]:
    """Return the zoo: the detectors first, then the classifiers by family and size."""
    return (*_DETECTORS.values(), *(timm_zoo.zoo_spec(name) for name in timm_zoo.ZOO))


def _find_timm(name: str) -> ModelSpec:
    architecture = name.removeprefix("timm:")
    if timm_zoo.has_timm_model(architecture):
        return timm_zoo.timm_spec(architecture)
    names = timm.list_models()
    bare, _, tag = architecture.partition(".")
    if tag and bare in names:
        names = timm.list_pretrained(f"{bare}.*")
    nearest = [f"timm:{match}" for match in difflib.get_close_matches(architecture, names)]
    raise UnknownModelError(f"timm {timm.__version__} has no {name!r}{_did_you_mean(nearest)}")


def _timm_names_like(name: str) -> list[str]:
    return [f"timm:{name}"] if timm_zoo.has_timm_model(name) else []


def _did_you_mean(nearest: list[str]) -> str:
    return f"; did you mean {' or '.join(nearest)}?" if nearest else ""


def _find_user_model(name: str) -> ModelSpec:
    factory = _import_callable(name)
    return ModelSpec(
        name=name,
        task="classification",
        build=_user_builder(name, factory),
        num_classes=None,
        preprocess=_USER_CLASSIFIER,
        description="a user's own network",
        brings_weights=True,
    )


def _import_callable(name: str) -> Callable[..., object]:
    module_name, _, attribute = name.partition(":")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the user's module exists, what it imports does not
        raise UnknownModelError(
            f"{name}: no Python module {error.name!r} in {folder} or on the Python path"
        ) from error
    except (TypeError, ValueError) as error:
        raise UnknownModelError(f"{name}: write it as package.module:callable") from error
    factory: object = getattr(module, attribute, None)
    if not callable(factory):
        legal = [key for key, value in vars(module).items() if callable(value)]
        nearest = difflib.get_close_matches(attribute, legal)
        raise UnknownModelError(
            f"{name}: {module_name} has no callable {attribute!r}{_did_you_mean(nearest)}"
        )
    return factory


def _user_builder(
    name: str, factory: Callable[..., object]
) -> Callable[[int | None, tuple[int, int]], nn.Module]:
    parameters = inspect.signature(factory).parameters
    required = {key for key, value in parameters.items() if _is_required(value)}
    if required - {"num_classes"}:
        raise UnknownModelError(
            f"{name} requires the arguments {', '.join(sorted(required))}; it may require"
            " num_classes alone"
        )

    def build(num_classes: int | None, image_size: tuple[int, int]) -> nn.Module:
        classes = num_classes or (_DEFAULT_CLASSES if required else None)
        sized = "num_classes" in parameters and classes is not None
        module = factory(num_classes=classes) if sized else factory()
        if not isinstance(module, nn.Module):
            raise UnknownModelError(
                f"{name} returned a {type(module).__name__}; it must return a torch.nn.Module"
            )
        return module

    return build


def _is_required(parameter: inspect.Parameter) -> bool:
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return parameter.default is inspect.Parameter.empty and parameter.kind not in variadic


def _detector(
    factory: Callable[[int], nn.Module],
    description: str,
    num_classes: int = _COCO_CLASSES,
    bundled_weights: Path | None = None,
) -> ModelSpec:
    def build(classes: int | None, image_size: tuple[int, int]) -> nn.Module:
        return factory(classes or num_classes)

    return ModelSpec(
        name=factory.__name__,
        task="detection",
        build=build,
        num_classes=num_classes,
        preprocess=_DETECTION,
        description=description,
        bundled_weights=bundled_weights,
    )


_DETECTORS: dict[str, ModelSpec] = {
    spec.name: spec
    for spec in (
        _detector(
            yolov6.yolov6n_demo,
            "YOLOv6-N's layout at half its width, trained on generated scenes; weights included",
            num_classes=8,
            bundled_weights=_DEMO_WEIGHTS,
        ),
        _detector(yolov6.yolov6n, "YOLOv6-N, release 3.0; bring COCO or your own weights"),
        _detector(yolov6.yolov6t, "YOLOv6-T, release 2.0; bring COCO or your own weights"),
        _detector(yolov6.yolov6s, "YOLOv6-S, release 3.0; bring COCO or your own weights"),
    )
}
