"""What official YOLOv6 checkpoints hold besides a network: older names, and branches of training.

Facts of the published files: until release 0.3.1 plain convolutions had no `block` in their names and
the pooling no wrapper; heads that were trained with anchors or by distillation carry branches that
inference does not use.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping

import torch
from torch import nn

from reptrt.models.fuse import reparameterize
from reptrt.models.yolov6.config import BACKBONE_CHANNELS, CONFIGS
from reptrt.models.yolov6.network import Yolov6, build_yolov6

Tensors = dict[str, torch.Tensor]

_OLD_CONVOLUTION = re.compile(r"(?<!\.block)(?<!\.rbr_dense)(?<!\.rbr_1x1)\.(conv|bn)\.")
_OLD_POOLING = re.compile(r"^(backbone\.ERBlock_5\.2)\.(?=cv\d\.)")


def _always(tensor: torch.Tensor) -> bool:
    return True


def _counts_up(tensor: torch.Tensor) -> bool:
    """Whether it holds 0, 1, 2, ...: what this network's own integral multiplies by."""
    return torch.equal(tensor.flatten().float(), torch.arange(tensor.numel(), dtype=torch.float32))


_DROPPED: tuple[tuple[str, re.Pattern[str], Callable[[torch.Tensor], bool]], ...] = (
    ("anchor-based branch", re.compile(r"detect\.(cls|reg)_preds_ab\.\d\.(weight|bias)"), _always),
    ("distillation branch", re.compile(r"detect\.reg_preds_dist\.\d\.(weight|bias)"), _always),
    ("distances of the bins", re.compile(r"detect\.proj(_conv\.weight)?"), _counts_up),
)


def is_yolov6(tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether these are the names of a YOLOv6 head."""
    head = tensors.get("detect.cls_preds.0.weight")
    return head is not None and head.dim() > 0


def rename_tensors(tensors: Tensors) -> Tensors:
    """Return the tensors under the names of release 0.4.0, which are those of this network."""
    pooling = "cspsppf" if any(".2.cv7." in name for name in tensors) else "sppf"
    return {
        _OLD_POOLING.sub(rf"\1.{pooling}.", _OLD_CONVOLUTION.sub(r".block.\1.", name)): tensor
        for name, tensor in tensors.items()
    }


def drop_training_branches(tensors: Tensors) -> tuple[Tensors, dict[str, str]]:
    """Return what inference uses, and the rule by which each other tensor was dropped, by name."""
    dropped = {
        name: rule
        for name, tensor in tensors.items()
        for rule, pattern, applies in _DROPPED
        if pattern.fullmatch(name) and applies(tensor)
    }
    return {name: t for name, t in tensors.items() if name not in dropped}, dropped


def backbone_activations(module: nn.Module) -> set[str]:
    """Return the class names of the activations of a YOLOv6's backbone; of others, nothing."""
    if not isinstance(module, Yolov6):
        return set()
    kinds = {type(layer) for layer in module.backbone.modules()}
    return {kind.__name__ for kind in kinds if kind.__module__ == nn.ReLU.__module__}


def fitting_names(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """Return the zoo names of the networks that have exactly these tensors, for any class count.

    Networks that differ in their activation alone have the same tensors.
    """
    stem = next((t for name, t in tensors.items() if name.startswith("backbone.stem.")), None)
    if not is_yolov6(tensors) or stem is None or not stem.dim():
        return []
    shapes = _shapes(tensors)
    num_classes = len(tensors["detect.cls_preds.0.weight"])
    is_deployed = any(".rbr_reparam." in name for name in tensors)
    has_branches = is_deployed or any(".rbr_dense." in name for name in tensors)
    return [
        name
        for name, config in CONFIGS.items()
        if config.channels(BACKBONE_CHANNELS[0]) == len(stem)
        and (config.mode == "repvgg") == has_branches
        and _shapes_of(name, num_classes, is_deployed) == shapes
    ]


@functools.cache
def _shapes_of(name: str, num_classes: int, is_deployed: bool) -> dict[str, torch.Size]:
    with torch.device("meta"):
        module: nn.Module = build_yolov6(name, num_classes)
        return _shapes((reparameterize(module) if is_deployed else module).state_dict())


def _shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {n: t.shape for n, t in tensors.items() if not n.endswith("num_batches_tracked")}
