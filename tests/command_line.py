"""The command line run inside the test process, and the project of an imaginary user."""

from __future__ import annotations

import io
import re
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from reptrt.pipeline.cli.main import main

TINY_MODELS = '''
"""A user's own networks, for images of 32 x 32 pixels."""

import torch
from torch import nn

from reptrt.models.yolov6.blocks import RepVggBlock


def build(num_classes=2):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes),
    )


class TwoOutputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = build()

    def forward(self, images):
        return self.body(images), images


class DataDependent(TwoOutputs):
    def forward(self, images):
        logits = self.body(images)
        return logits if logits.sum() > 0 else -logits


def branches(num_classes=2):
    torch.manual_seed(0)
    return nn.Sequential(
        RepVggBlock(3, 8, stride=2), RepVggBlock(8, 8),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes),
    )


def fixed_size(num_classes=2):
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Flatten(), nn.Linear(4 * 16 * 16, num_classes)
    )


def colours(outlier=0.0):
    """Class 1 for red images, 0 for blue ones; INT8 sees neither beside an `outlier` of 1000."""
    network = build()
    first, second, last = network[0], network[3], network[7]
    for layer in (first, second, last):
        layer.weight.data.zero_()
        layer.bias.data.zero_()
    first.weight.data[0, 0, 1, 1] = first.weight.data[1, 2, 1, 1] = 1
    first.bias.data[7] = outlier
    for channel in range(8):
        second.weight.data[channel, channel, 1, 1] = 1
    last.weight.data[:, :2] = torch.tensor([[-1.0, 1.0], [1.0, -1.0]])
    return network


class Joined(nn.Module):
    """As `colours`, with a concat in the middle."""

    def __init__(self):
        super().__init__()
        network = colours()
        self.first, self.rest = network[:3], network[3:]
        self.left, self.right = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)
        for offset, layer in ((0, self.left), (4, self.right)):
            layer.weight.data.zero_()
            layer.bias.data.zero_()
            for channel in range(4):
                layer.weight.data[channel, offset + channel] = 1

    def forward(self, images):
        body = self.first(images)
        return self.rest(torch.cat([self.left(body), self.right(body)], 1))


def joined():
    return Joined()


def collapsing():
    return colours(1000.0)


def blind():
    network = colours()
    network[0].weight.data[0] = float("nan")
    return network


def diverged():
    network = build()
    network[0].weight.data[0] = float("nan")
    return network
'''


def complaints_in(err: str) -> list[str]:
    """Lines of stderr that are neither empty, nor a warning, nor progress."""
    return [line for line in err.splitlines() if line and not _TALK.match(line)]


_TALK = re.compile(r"WARNING: |\[\d+:\d\d\] ")


@dataclass(frozen=True)
class Outcome:
    """What a command left on the terminal."""

    code: int
    out: str
    err: str

    @property
    def complaints(self) -> list[str]:
        return complaints_in(self.err)


@dataclass(frozen=True)
class TinyProject:
    """A user's folder.

    Attributes:
        model: MODEL of a classifier with two classes.
        folder: holds the module of that model; importable here, and from a process started in it.
        data: 12 calibration images, a .npy file.
        photos: an ImageFolder with two classes of 4 images.
    """

    model: str
    folder: Path
    data: Path
    photos: Path

    @property
    def options(self) -> list[str]:
        """MODEL and the options of the shortest whole run."""
        return [
            self.model, "--image-size", "32", "--data", str(self.data), "--calibrator", "minmax",
            "--quantize", "all", "--target", "tensorrt-rtx",
        ]  # fmt: skip

    def files_of(self, workspace: Path, calibrator: str = "minmax-w8a8") -> Path:
        """Folder of one run's files below `--workspace`."""
        return workspace / "tiny_models-build" / calibrator / "tensorrt-rtx"


def reptrt(*arguments: object) -> Outcome:
    """Run the command line in this process; what is no user's error is raised."""
    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["reptrt", *map(str, arguments)]
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.argv = before
    return Outcome(code, out.getvalue(), err.getvalue())
