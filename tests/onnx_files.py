"""Small networks as ONNX files, for tests of their import."""

from __future__ import annotations

import warnings
from pathlib import Path

import onnx
import torch
import torch.nn.functional as F
from torch import nn

SIDE = 32


class Plain(nn.Module):
    """Convolution, BatchNorm, depthwise convolution with squeeze-and-excitation, classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 5, 1, 2, groups=8)
        self.squeeze = nn.Conv2d(8, 8, 1)
        self.fc = nn.Linear(8, 5)
        nn.init.uniform_(self.norm.running_var, 0.5, 2.0)  # type: ignore[arg-type]  # a buffer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.hardswish(self.norm(self.stem(x))), 3, 2, 1)
        x = F.silu(self.depthwise(x))
        x = x * F.hardsigmoid(self.squeeze(x.mean((2, 3), keepdim=True)))
        x = F.adaptive_avg_pool2d(x, 1).view(x.size(0), -1)
        return self.fc(F.dropout(x, 0.2, self.training))


class Detector(nn.Module):
    """Two maps [N, 3 + 4, h, w] at strides 4 and 8: scores in 0..1, then distances in cells."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU()
        )
        self.down, self.lateral = nn.Conv2d(8, 8, 3, 2, 1), nn.Conv2d(16, 8, 1)
        self.heads = nn.ModuleList(nn.Conv2d(8, 7, 1) for _ in range(2))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        fine = self.stem(x)
        coarse = F.relu(self.down(fine))
        up = F.interpolate(coarse, scale_factor=2.0, mode="nearest")
        fine = self.lateral(torch.cat([fine, up], 1))
        maps = [head(level) for head, level in zip(self.heads, (fine, coarse), strict=True)]
        return [torch.cat([y[:, :3].sigmoid(), y[:, 3:].exp()], 1) for y in maps]


class Segmenter(nn.Module):
    """Maps and a vector whose meaning nobody states."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 6, 3, 1, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = F.relu(self.body(x))
        return features, features.flatten(2).amax(2)


class ChannelsLast(nn.Module):
    """Takes [N, H, W, 3], as networks of TensorFlow do."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x.permute(0, 3, 1, 2))


def seeded(factory: type[nn.Module]) -> nn.Module:
    """Network with weights from a seed, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return factory().eval()


def write_onnx(
    network: nn.Module,
    path: Path,
    *,
    dynamic: bool = True,
    opset: int = 17,
    example: torch.Tensor | None = None,
    dynamo: bool = False,
) -> Path:
    """Export `network`, with an open batch or for one image."""
    images = torch.rand(2 if dynamic else 1, 3, SIDE, SIDE) if example is None else example
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
            torch.onnx.export(
                network, (images,), path, dynamo=True, dynamic_shapes=shapes, verbose=False,
                external_data=False,
            )  # fmt: skip
        else:
            axes = {"image": {0: "batch"}} if dynamic else None
            torch.onnx.export(
                network, (images,), path, dynamo=False, opset_version=opset,
                input_names=["image"], dynamic_axes=axes,
            )  # fmt: skip
    return path


def from_text(text: str, path: Path) -> Path:
    """Write a model given in ONNX's text form."""
    onnx.save(onnx.parser.parse_model(text), path)
    return path
