"""Every name that a user can give as MODEL, and what stands behind it.

A name is one of the zoo's (`list_models`), `timm:NAME` for any model of timm, `torchvision:NAME` for a
classifier of torchvision, `hf-hub:OWNER/NAME` for a model of timm on the hub, `package.module:callable` for a user's own network, or the path of an ONNX file.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable
from pathlib import Path

import timm
from torch import nn

import reptrt
from reptrt.models import timm_zoo, torchvision_zoo
from reptrt.models.names import (
    ONNX_SUFFIX,
    TIMM,
    TIMM_PREFIX,
    TORCHVISION_PREFIX,
    UnknownModelError,
    did_you_mean,
    no_classifier,
    require_model_name,
)
from reptrt.models.onnx_import.file import read_onnx
from reptrt.models.onnx_import.importer import import_onnx
from reptrt.models.spec import (
    ModelSpec,
    Preprocess,
    PreprocessOverrides,
    PublishedWeights,
)
from reptrt.models.yolov6 import zoo as yolov6_zoo

__all__ = [
    "ModelSpec",
    "Preprocess",
    "PreprocessOverrides",
    "PublishedWeights",
    "UnknownModelError",
    "find_model",
    "list_models",
]

_DEFAULT_CLASSES = 1000


def find_model(name: str) -> ModelSpec:
    """Return what `name` stands for.

    Args:
        name: A zoo name, `timm:NAME`, `torchvision:NAME`, `hf-hub:OWNER/NAME`,
            `package.module:callable` or a path that ends in `.onnx`. The
            callable takes nothing or `num_classes`, and returns a network of images; the current
            folder is importable.

    Raises:
        UnknownModelError: Nothing has that name; the message lists the nearest ones.
        OnnxFileError: The file cannot be used.
    """
    require_model_name(name)
    if name.lower().endswith(ONNX_SUFFIX):
        return _find_onnx(name)
    if timm_zoo.is_hub_name(name):
        return _find_on_hub(name)
    if name.startswith(TORCHVISION_PREFIX):
        return _find_torchvision(name)
    if name.startswith(TIMM_PREFIX):
        return _find_timm(name)
    if ":" in name:
        return _find_user_model(name)
    return timm_zoo.zoo_spec(name) if name in TIMM else yolov6_zoo.ZOO[name]


def list_models() -> tuple[ModelSpec, ...]:
    """Return the zoo: the detectors first, then the classifiers by family and size."""
    return (*yolov6_zoo.ZOO.values(), *map(timm_zoo.zoo_spec, TIMM))


def _find_timm(name: str) -> ModelSpec:
    architecture = name.removeprefix(TIMM_PREFIX)
    if timm_zoo.has_timm_model(architecture):
        return timm_zoo.timm_spec(architecture)
    names = timm.list_models()
    bare, _, tag = architecture.partition(".")
    if tag and bare in names:
        names = timm.list_pretrained(f"{bare}.*")
    nearest = [f"{TIMM_PREFIX}{match}" for match in difflib.get_close_matches(architecture, names)]
    raise UnknownModelError(f"timm {timm.__version__} has no {name!r}{did_you_mean(nearest)}")


def _find_on_hub(name: str) -> ModelSpec:
    try:
        return timm_zoo.hub_spec(name)
    except ValueError as error:
        raise UnknownModelError(f"{name}: {error}; only models of timm are read") from error


def _find_torchvision(name: str) -> ModelSpec:
    architecture = name.removeprefix(TORCHVISION_PREFIX)
    names = torchvision_zoo.list_classifiers()
    if architecture in names:
        return torchvision_zoo.torchvision_spec(architecture)
    raise UnknownModelError(no_classifier(name, names))


def _find_onnx(name: str) -> ModelSpec:
    path = Path(name)
    file = read_onnx(path)  # what is wrong with it is said before anything else is done

    def build(num_classes: int | None, image_size: tuple[int, int]) -> nn.Module:
        return import_onnx(file, image_size).module

    return ModelSpec(
        name=name,
        task=None,
        build=build,
        num_classes=None,
        preprocess=None,
        description="a user's own ONNX file",
        brings_weights=True,
        onnx=path,
    )


def _find_user_model(name: str) -> ModelSpec:
    factory = _import_callable(name)
    return ModelSpec(
        name=name,
        task=None,
        build=_user_builder(name, factory),
        num_classes=None,
        preprocess=None,
        description="a user's own network",
        brings_weights=True,
    )


def _import_callable(name: str) -> Callable[..., object]:
    module_name, _, attribute = name.partition(":")
    _prefer_the_users_folder()
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the user's module exists, what it imports does not
        raise UnknownModelError(f"{name}: {_what_was_searched(str(error.name))}") from error
    except (TypeError, ValueError) as error:
        raise UnknownModelError(f"{name}: write it as package.module:callable") from error
    factory: object = getattr(module, attribute, None)
    if not callable(factory):
        legal = [key for key, value in vars(module).items() if callable(value)]
        nearest = difflib.get_close_matches(attribute, legal)
        raise UnknownModelError(
            f"{name}: {module_name} has no callable {attribute!r}{did_you_mean(nearest)}"
        )
    return factory


def _prefer_the_users_folder() -> None:
    """Put the current folder first on the Python path, and a clone of this project off it.

    An editable install puts the clone there, whose `models/` would answer for a user's `models/`.
    """
    folder, package = Path.cwd(), Path(reptrt.__file__).resolve().parent
    is_clone = (package / "models").is_symlink()
    if is_clone and package.parent != folder:
        sys.path[:] = [
            entry for entry in sys.path if Path(entry or ".").resolve() != package.parent
        ]
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _what_was_searched(missing: str) -> str:
    """One line: the module that is missing, where it was looked for, and what is there instead."""
    package, _, leaf = missing.rpartition(".")
    if package:
        places = list(getattr(sys.modules.get(package), "__path__", []))
    else:
        places = [str(Path.cwd())]
    present = sorted({info.name for info in pkgutil.iter_modules(places)})
    found = f"; found there: {', '.join(present[:8])}" if present else "; it holds no Python module"
    elsewhere = "" if package else " or on the Python path"
    nearest = did_you_mean(difflib.get_close_matches(leaf, present))
    return f"no Python module {missing!r} in {', '.join(places)}{elsewhere}{nearest or found}"


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
