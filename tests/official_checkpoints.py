"""Files of the structure that YOLOv6 publishes: whole pickled modules, with EMA and optimizer.

The classes exist only while a file is written, under the names that official files refer to.
"""

from __future__ import annotations

import collections
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn

from reptrt.models.yolov6.network import Yolov6

CONSTRUCTED: list[str] = []
_HOMES = {
    "Yolov6": "yolov6.models.yolo.Model",
    "EfficientRep": "yolov6.models.efficientrep.EfficientRep",
    "EffiDeHead": "yolov6.models.heads.effidehead_fuseab.Detect",
    "RepBiPan": "yolov6.models.reppan.RepBiFPANNeck",
}
_COMMON = "yolov6.layers.common"


def save_official(
    path: Path,
    model: Yolov6,
    ema: Yolov6 | None = None,
    names: list[str] | None = None,
    optimizer: bool = True,
) -> dict[str, torch.Tensor]:
    """Write `model` as a training run does: half precision, auxiliary branches, results of NumPy.

    Returns:
        The state dict of the pickled module whose weights are to be read: `ema`, else `model`.
    """
    with _official_classes() as find_class:
        official = _imitate(model, find_class)
        averaged = _imitate(ema, find_class) if ema is not None else None
        for module in filter(None, (official, averaged)):
            _add_training_parts(module, model.num_classes)
            module.half()
            if names:
                module.names = names
        sgd = torch.optim.SGD(official.parameters(), lr=0.01, momentum=0.9)
        for parameter in list(official.parameters())[:3]:
            sgd.state[parameter]["momentum_buffer"] = torch.ones_like(parameter)
        content = {
            "model": official,
            "ema": averaged,
            "updates": 7,
            "optimizer": sgd.state_dict() if optimizer else None,
            "epoch": 299,
            "results": (np.float64(0.5), np.float64(0.4)),
        }
        torch.save(content, path)
        wanted = (averaged if averaged is not None else official).state_dict()
        return {name: tensor.clone() for name, tensor in wanted.items()}


@contextmanager
def _official_classes() -> Iterator[Callable[[str], type[nn.Module]]]:
    before = set(sys.modules)

    def find_class(path: str) -> type[nn.Module]:
        home, _, name = path.rpartition(".")
        parts = home.split(".")
        for end in range(1, len(parts) + 1):
            prefix = ".".join(parts[:end])
            sys.modules.setdefault(prefix, types.ModuleType(prefix))
        module = sys.modules[home]
        if not hasattr(module, name):
            cls = type(name, (nn.Module,), {"__module__": home, "__setstate__": _note_construction})
            setattr(module, name, cls)
        found: type[nn.Module] = getattr(module, name)
        return found

    try:
        yield find_class
    finally:
        for name in set(sys.modules) - before:
            if name.split(".")[0] == "yolov6":
                del sys.modules[name]


def _note_construction(self: nn.Module, state: dict[str, object]) -> None:
    CONSTRUCTED.append(type(self).__name__)
    self.__dict__.update(state)


def _imitate(module: nn.Module, find_class: Callable[[str], type[nn.Module]]) -> nn.Module:
    """Rebuild `module` from classes of the official names; torch's own stay."""
    name = type(module).__name__
    is_torch = type(module).__module__.startswith("torch.")
    cls = type(module) if is_torch else find_class(_HOMES.get(name, f"{_COMMON}.{name}"))
    copy = cls.__new__(cls)
    nn.Module.__init__(copy)
    for key, value in vars(module).items():
        if key not in ("_parameters", "_buffers", "_modules", "strides"):
            copy.__dict__[key] = value
    for key, parameter in module.named_parameters(recurse=False):
        copy.register_parameter(key, nn.Parameter(parameter.detach().clone()))
    for key, buffer in module.named_buffers(recurse=False):
        persistent = key not in module._non_persistent_buffers_set
        copy.register_buffer(key, buffer.clone(), persistent=persistent)
    for key, child in module._modules.items():
        copy._modules[key] = None if child is None else _imitate(child, find_class)
    return copy


def _add_training_parts(official: nn.Module, num_classes: int) -> None:
    """Add what only training uses, as `fuse_ab` and distillation leave it in the head."""
    detect = official.detect
    channels = [layer.in_channels for layer in detect.cls_preds]
    detect.cls_preds_ab = nn.ModuleList(nn.Conv2d(c, 3 * num_classes, 1) for c in channels)
    detect.reg_preds_ab = nn.ModuleList(nn.Conv2d(c, 12, 1) for c in channels)
    detect.reg_preds_dist = nn.ModuleList(nn.Conv2d(c, 68, 1) for c in channels)
    detect.proj = nn.Parameter(torch.arange(17.0), requires_grad=False)
    detect.proj_conv = nn.Conv2d(17, 1, 1, bias=False)
    detect.proj_conv.weight = nn.Parameter(detect.proj.detach().clone().view(1, 17, 1, 1))
    detect.nc = num_classes
    detect.stride = torch.tensor([8, 16, 32])
    detect.grid = [torch.zeros(1)] * 3
    official.stride = detect.stride
    official.export = False
    official._hooks_of_long_ago = collections.OrderedDict()
