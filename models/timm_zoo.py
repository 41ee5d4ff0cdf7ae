"""Models that come from timm: short zoo names for three families, and every `timm:NAME`.

Preprocessing and provenance are what timm's own `pretrained_cfg` says. The zoo pins the weights'
tag (`repvgg_a0.rvgg_in1k`), so a new default in timm does not change what a short name means.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any

import timm
from huggingface_hub import hf_hub_url
from timm.models import PretrainedCfg
from torch import nn

from reptrt.engines.foreign.border import read_json, reading
from reptrt.engines.foreign.limits import MAX_CLASSES, MAX_SIDECAR_BYTES
from reptrt.engines.foreign.text import one_line
from reptrt.models.names import HUB_PREFIXES, TIMM, TIMM_PREFIX
from reptrt.models.spec import (
    ModelSpec,
    Preprocess,
    PreprocessOverrides,
    PublishedWeights,
    Triple,
)
from reptrt.models.weights.download import fetch_hub_file

logger = logging.getLogger(__name__)

_HUB_FILENAME = "model.safetensors"
_DEFAULT_CLASSES = 1000
_TEXTS = ("interpolation", "crop_mode", "license")
_USED = ("input_size", "mean", "std", "crop_pct", "num_classes", "fixed_input_size", *_TEXTS)


def zoo_spec(name: str) -> ModelSpec:
    """Return the spec of a short name, one of `reptrt.models.names.TIMM`."""
    entry = TIMM[name]
    return _spec(name, entry.architecture, entry.source)


def has_timm_model(architecture: str) -> bool:
    """Whether timm knows `architecture`, with its weights' tag when one is given."""
    bare, _, tag = architecture.partition(".")
    return timm.is_model(bare) and (not tag or architecture in timm.list_pretrained(f"{bare}.*"))


def timm_spec(architecture: str) -> ModelSpec:
    """Return the spec of `timm:architecture`; `has_timm_model(architecture)` must hold."""
    return _spec(f"{TIMM_PREFIX}{architecture}", architecture, f"timm {architecture}")


def is_hub_name(name: str) -> bool:
    """Whether `name` is that of a model of timm on the Hugging Face hub: `hf-hub:owner/model`."""
    return name.removeprefix(TIMM_PREFIX).startswith(HUB_PREFIXES)


def hub_spec(name: str) -> ModelSpec:
    """Return the spec of `hf-hub:owner/model`, whose `config.json` says what it is.

    Raises:
        DownloadError: it cannot be read from here.
        ValueError: it does not describe a model of timm, on one line.
    """
    repository = name.removeprefix(TIMM_PREFIX).partition(":")[2]
    path = fetch_hub_file(repository, "config.json", name)
    with reading(path, ValueError, "describes no model of timm"):
        content = _as_object(read_json(path, MAX_SIDECAR_BYTES, ValueError))
        architecture = str(content.get("architecture", ""))
        if not timm.is_model(architecture):
            raise ValueError(
                f"it names the architecture {one_line(architecture)!r}, none of timm's"
            )
        stated = {**content, **_as_object(content.get("pretrained_cfg", {}))}
        stated["num_classes"] = content.get("num_classes") or stated.get("num_classes")
        config = dataclasses.replace(
            PretrainedCfg(), hf_hub_id=repository, **_checked_preprocess(stated)
        )
        return _describe(name, architecture, f"{repository} on the Hugging Face hub", config)


def _as_object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{one_line(value)} is no object")
    return value


def _checked_preprocess(stated: dict[str, Any]) -> dict[str, Any]:
    """Of what a `config.json` states, what is used of it, in its ranges.

    Raises:
        ValueError: a value has another type, or is out of its range.
    """
    given = {key: stated[key] for key in _USED if stated.get(key) is not None}
    values = {key: getattr(PretrainedCfg(), key) for key in _USED} | given
    size = tuple(map(int, values["input_size"]))
    PreprocessOverrides((size[1], size[2]), _triple(values["mean"]), _triple(values["std"]))
    crop_pct, classes = float(values["crop_pct"]), int(values["num_classes"])
    if not 0 < crop_pct <= 1:
        raise ValueError(f"crop_pct is {one_line(crop_pct)}; expected above 0 and up to 1")
    if not 0 <= classes <= MAX_CLASSES:
        raise ValueError(f"num_classes is {one_line(classes)}; expected up to {MAX_CLASSES}")
    if not all(isinstance(values[key] or "", str) for key in _TEXTS):
        raise ValueError(f"one of {', '.join(_TEXTS)} is no text")
    return {**values, "input_size": size, "crop_pct": crop_pct, "num_classes": classes}


def _spec(name: str, architecture: str, source: str) -> ModelSpec:
    config = timm.get_pretrained_cfg(architecture) or PretrainedCfg()
    return _describe(name, architecture, source, config)


def _describe(name: str, architecture: str, source: str, config: PretrainedCfg) -> ModelSpec:
    if config.crop_mode != "center":
        logger.warning(
            "%s: timm evaluates it with crop mode %r; a centre crop is used here",
            name,
            config.crop_mode,
        )
    image_size = (config.input_size[1], config.input_size[2])
    return ModelSpec(
        name=name,
        task="classification",
        build=_builder(architecture, image_size, fixed_size=bool(config.fixed_input_size)),
        num_classes=config.num_classes or _DEFAULT_CLASSES,
        preprocess=Preprocess(
            image_size=image_size,
            mean=_triple(config.mean),
            std=_triple(config.std),
            interpolation=config.interpolation,
            crop_pct=config.crop_pct,
        ),
        description=f"timm {architecture}: {source}",
        weights=_published_weights(config, source),
    )


def _triple(values: Sequence[float]) -> Triple:
    red, green, blue = values
    return red, green, blue


def _builder(
    architecture: str, native_size: tuple[int, int], *, fixed_size: bool
) -> Callable[[int | None, tuple[int, int]], nn.Module]:
    def build(num_classes: int | None, image_size: tuple[int, int]) -> nn.Module:
        # Position embeddings and windows are sized at construction, only where timm says so.
        resized = fixed_size and image_size != native_size
        arguments: dict[str, Any] = {"img_size": image_size} if resized else {}
        return timm.create_model(
            architecture, num_classes=num_classes or _DEFAULT_CLASSES, **arguments
        )

    return build


def _published_weights(config: PretrainedCfg, source: str) -> PublishedWeights | None:
    if config.num_classes == 0:
        return None  # a backbone without a classifier
    licence = config.license or "unknown"
    if config.hf_hub_id:
        filename = config.hf_hub_filename or _HUB_FILENAME
        url = hf_hub_url(config.hf_hub_id, filename)
        return PublishedWeights(url, filename, None, licence, source, hub_id=config.hf_hub_id)
    if not config.url:
        return None
    url = str(config.url)
    filename = url.rsplit("/", 1)[-1]
    return PublishedWeights(url, filename, digest_in(filename), licence, source)


def digest_in(filename: str) -> str | None:
    """Return the first digits of the sha256 that torch hub's file names end in (`-a1311bcf.pth`)."""
    digits = filename.rsplit(".", 1)[0].rpartition("-")[2]
    is_digest = len(digits) >= 8 and set(digits) <= set("0123456789abcdef")
    return digits if is_digest else None
