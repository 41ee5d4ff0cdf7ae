"""`torchvision:NAME`: the classifiers of torchvision, with their newest published weights."""

from __future__ import annotations

from typing import Any

import torchvision
from torch import nn

from reptrt.models.names import TORCHVISION_PREFIX
from reptrt.models.spec import ModelSpec, Preprocess, PublishedWeights
from reptrt.models.timm_zoo import digest_in

_CLASSES = 1000


def list_classifiers() -> list[str]:
    """Names that torchvision gives to its classifiers."""
    names: list[str] = torchvision.models.list_models(module=torchvision.models)
    return names


def torchvision_spec(architecture: str) -> ModelSpec:
    """Return the spec of `torchvision:architecture`, one of `list_classifiers`."""

    def build(num_classes: int | None, image_size: tuple[int, int]) -> nn.Module:
        module: nn.Module = torchvision.models.get_model(
            architecture, weights=None, num_classes=num_classes or _CLASSES
        )
        return module

    weights = torchvision.models.get_model_weights(architecture).DEFAULT
    preset = weights.transforms()
    (side,), resize = preset.crop_size, preset.resize_size[0]
    return ModelSpec(
        name=f"{TORCHVISION_PREFIX}{architecture}",
        task="classification",
        build=build,
        num_classes=len(weights.meta["categories"]),
        preprocess=Preprocess(
            image_size=(side, side),
            mean=_triple(preset.mean),
            std=_triple(preset.std),
            interpolation=str(preset.interpolation.value),
            crop_pct=side / resize,
        ),
        description=f"torchvision {architecture}: {weights.name}, ImageNet-1k",
        weights=_published(weights),
    )


def _triple(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _published(weights: Any) -> PublishedWeights:
    url = str(weights.url)
    filename = url.rsplit("/", 1)[-1]
    source = f"torchvision {weights}"
    return PublishedWeights(url, filename, digest_in(filename), "BSD-3-Clause", source)
