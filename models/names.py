"""The names that MODEL can have, without building a network: PyTorch takes seconds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

ONNX_SUFFIX = ".onnx"
TIMM_PREFIX = "timm:"
TORCHVISION_PREFIX = "torchvision:"
HUB_PREFIXES = ("hf-hub:", "hf_hub:")
PREFIXES = (TIMM_PREFIX, TORCHVISION_PREFIX, *HUB_PREFIXES)
_CHECKPOINTS = (".pt", ".pth", ".ckpt", ".safetensors", ".bin")
_REGISTERED = re.compile(r"^@register_model(?:\(\))?\n(?:[@ )].*\n)*?def (\w+)\(", re.MULTILINE)


class UnknownModelError(LookupError):
    """MODEL names nothing that can be built."""

    exit_code = 2


@dataclass(frozen=True)
class TimmEntry:
    """A short name's timm architecture with its weights' tag, and who trained those weights."""

    architecture: str
    source: str


@dataclass(frozen=True)
class Release:
    """A file of YOLOv6's releases on GitHub; those of release 3.0 are linked under 0.4.0, of 2.0 under 0.2.0."""

    tag: str
    filename: str
    description: str


_REPVGG = "RepVGG authors (DingXiaoH/RepVGG), ImageNet-1k"
_MOBILEONE = "Apple (apple/ml-mobileone), ImageNet-1k"
_DEIT = "Meta (facebookresearch/deit), ImageNet-1k"
_AUGREG = "Google (How to train your ViT), ImageNet-21k, fine-tuned on ImageNet-1k"
_AUGREG2 = "Google, ImageNet-21k; fine-tuned on ImageNet-1k by timm"
_SWIN = "Microsoft (microsoft/Swin-Transformer), ImageNet-1k"
_SWIN_22K = "Microsoft (microsoft/Swin-Transformer), ImageNet-22k, fine-tuned on ImageNet-1k"

DEMO = "yolov6n_demo"
YOLOV6: Mapping[str, Release] = {
    "yolov6n": Release("0.4.0", "yolov6n.pt", "YOLOv6-N, release 3.0"),
    "yolov6s": Release("0.4.0", "yolov6s.pt", "YOLOv6-S, release 3.0"),
    "yolov6m": Release("0.4.0", "yolov6m.pt", "YOLOv6-M, release 3.0"),
    "yolov6l": Release("0.4.0", "yolov6l.pt", "YOLOv6-L, release 3.0"),
    "yolov6n_base": Release("0.3.0", "yolov6n_base.pt", "YOLOv6-N, plain convolutions"),
    "yolov6s_base": Release("0.3.0", "yolov6s_base.pt", "YOLOv6-S, plain convolutions"),
    "yolov6m_base": Release("0.3.0", "yolov6m_base.pt", "YOLOv6-M, plain convolutions"),
    "yolov6l_base": Release("0.3.0", "yolov6l_base.pt", "YOLOv6-L, plain convolutions"),
    "yolov6n_v2": Release("0.2.0", "yolov6n.pt", "YOLOv6-N, release 2.0"),
    "yolov6t": Release("0.2.0", "yolov6t.pt", "YOLOv6-T, release 2.0"),
    "yolov6s_v2": Release("0.2.0", "yolov6s.pt", "YOLOv6-S, release 2.0"),
    "yolov6m_v2": Release("0.2.0", "yolov6m.pt", "YOLOv6-M, release 2.0"),
    "yolov6l_relu": Release("0.2.0", "yolov6l_relu.pt", "YOLOv6-L with ReLU, release 2.0"),
    "yolov6l_v2": Release("0.2.0", "yolov6l.pt", "YOLOv6-L, release 2.0"),
}
TIMM: Mapping[str, TimmEntry] = {
    "repvgg_a0": TimmEntry("repvgg_a0.rvgg_in1k", _REPVGG),
    "repvgg_a1": TimmEntry("repvgg_a1.rvgg_in1k", _REPVGG),
    "repvgg_a2": TimmEntry("repvgg_a2.rvgg_in1k", _REPVGG),
    "repvgg_b0": TimmEntry("repvgg_b0.rvgg_in1k", _REPVGG),
    "repvgg_b1": TimmEntry("repvgg_b1.rvgg_in1k", _REPVGG),
    "repvgg_b1g4": TimmEntry("repvgg_b1g4.rvgg_in1k", _REPVGG),
    "repvgg_b2": TimmEntry("repvgg_b2.rvgg_in1k", _REPVGG),
    "repvgg_b2g4": TimmEntry("repvgg_b2g4.rvgg_in1k", _REPVGG),
    "repvgg_b3": TimmEntry("repvgg_b3.rvgg_in1k", _REPVGG),
    "repvgg_b3g4": TimmEntry("repvgg_b3g4.rvgg_in1k", _REPVGG),
    "mobileone_s0": TimmEntry("mobileone_s0.apple_in1k", _MOBILEONE),
    "mobileone_s1": TimmEntry("mobileone_s1.apple_in1k", _MOBILEONE),
    "mobileone_s2": TimmEntry("mobileone_s2.apple_in1k", _MOBILEONE),
    "mobileone_s3": TimmEntry("mobileone_s3.apple_in1k", _MOBILEONE),
    "mobileone_s4": TimmEntry("mobileone_s4.apple_in1k", _MOBILEONE),
    "deit_tiny": TimmEntry("deit_tiny_patch16_224.fb_in1k", _DEIT),
    "deit_small": TimmEntry("deit_small_patch16_224.fb_in1k", _DEIT),
    "deit_base": TimmEntry("deit_base_patch16_224.fb_in1k", _DEIT),
    "vit_tiny": TimmEntry("vit_tiny_patch16_224.augreg_in21k_ft_in1k", _AUGREG),
    "vit_small": TimmEntry("vit_small_patch16_224.augreg_in21k_ft_in1k", _AUGREG),
    "vit_base": TimmEntry("vit_base_patch16_224.augreg2_in21k_ft_in1k", _AUGREG2),
    "swin_tiny": TimmEntry("swin_tiny_patch4_window7_224.ms_in1k", _SWIN),
    "swin_small": TimmEntry("swin_small_patch4_window7_224.ms_in1k", _SWIN),
    "swin_base": TimmEntry("swin_base_patch4_window7_224.ms_in22k_ft_in1k", _SWIN_22K),
}
ZOO = (DEMO, *YOLOV6, *TIMM)
"""Short names, in the order of lists."""


def require_model_name(name: str) -> None:
    """Refuse what is certain to name nothing; the rest is for `reptrt.models.registry.find_model`.

    Raises:
        UnknownModelError: the message lists the nearest names.
    """
    if name.lower().endswith(ONNX_SUFFIX):
        if not Path(name).is_file():
            raise UnknownModelError(f"{name}: no such file; MODEL may be the path of an ONNX file")
    elif name.removeprefix(TIMM_PREFIX).startswith(HUB_PREFIXES):
        return
    elif name.startswith(TIMM_PREFIX):
        _require_in_timm(name)
    elif name.startswith(TORCHVISION_PREFIX):
        _require_in_torchvision(name)
    elif ":" not in name and name not in ZOO:
        raise UnknownModelError(_explain(name))


def did_you_mean(nearest: Iterable[str]) -> str:
    """The end of a message that names what is like a wrong name; empty where nothing is."""
    found = " or ".join(nearest)
    return f"; did you mean {found}?" if found else ""


def timm_names() -> list[str]:
    """Models that the source of timm registers; importing it takes seconds."""
    return _REGISTERED.findall(_source_of_models("timm"))


def torchvision_names() -> list[str]:
    """Classifiers that the source of torchvision registers; its detectors stand in folders of their own."""
    return _REGISTERED.findall(_source_of_models("torchvision"))


def _require_in_timm(name: str) -> None:
    bare = name.removeprefix(TIMM_PREFIX).partition(".")[0]
    source = _source_of_models("timm")
    is_there = any(form in source for form in (f"def {bare}(", f"'{bare}'", f'"{bare}"'))
    if source and not is_there:  # former names are quoted there
        nearest = [f"{TIMM_PREFIX}{one}" for one in get_close_matches(bare, timm_names())]
        raise UnknownModelError(f"timm {version('timm')} has no {name!r}{did_you_mean(nearest)}")


def _require_in_torchvision(name: str) -> None:
    bare, names = name.removeprefix(TORCHVISION_PREFIX), torchvision_names()
    if names and bare not in names:
        raise UnknownModelError(no_classifier(name, names))


def no_classifier(name: str, names: Iterable[str]) -> str:
    """What is said where torchvision has `names`, and none is behind the prefix of `name`."""
    bare = name.removeprefix(TORCHVISION_PREFIX)
    nearest = [f"{TORCHVISION_PREFIX}{one}" for one in get_close_matches(bare, list(names))]
    return f"torchvision has no classifier {name!r}{did_you_mean(nearest)}"


def _explain(name: str) -> str:
    if name.lower().endswith(_CHECKPOINTS):
        return (
            f"{name!r} is a checkpoint: it holds weights, and not the network that they belong to;"
            " export the network to ONNX where it was trained and give that file"
            " (Ultralytics: yolo export model=FILE format=onnx), or give MODEL by name with `weights`"
        )
    nearest = get_close_matches(name, ZOO)
    if name in timm_names():
        nearest.append(f"{TIMM_PREFIX}{name}")
    return (
        f"unknown model {name!r}: MODEL is a zoo name (`reptrt models` lists them), timm:NAME,"
        " torchvision:NAME, hf-hub:OWNER/NAME, package.module:callable, file.onnx or the folder of a run"
        f"{did_you_mean(nearest)}"
    )


@cache
def _source_of_models(library: str) -> str:
    """Text of a library's `models/*.py`; "" where it is not there as files."""
    spec = find_spec(library)
    folders = (spec.submodule_search_locations if spec else None) or ()
    files = sorted(path for one in folders for path in Path(one, "models").glob("*.py"))
    return "\n".join(path.read_text(encoding="utf-8") for path in files)
