"""RepVGG-A0 in train form, as timm's module, in blocks that nobody can fuse, and as an ONNX file."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from timm.models.byobnet import RepVggBlock
from torch import nn

import reptrt
from reptrt.engines.report_schema import Report
from reptrt.models.load import load_model
from tests.real_weights import MARKS

pytestmark = MARKS
WEIGHTS = Path("weights/repvgg_a0_imagenette.pth")


class Summed(nn.Module):
    """3x3, 1x1 and identity, each with its BatchNorm, summed: a block without `fuse()`."""

    def __init__(self, block: RepVggBlock) -> None:
        super().__init__()
        self.dense, self.point, self.skip = block.conv_kxk, block.conv_1x1, block.identity
        self.act = block.act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run."""
        found = self.dense(x) + self.point(x)
        return self.act(found if self.skip is None else found + self.skip(x))


def hand_written(module: nn.Module) -> nn.Module:
    """Copy of timm's network with blocks of that kind in the place of its own."""
    copied = copy.deepcopy(module)
    for name, block in list(copied.named_modules()):
        if isinstance(block, RepVggBlock):
            parent, _, last = name.rpartition(".")
            setattr(copied.get_submodule(parent), last, Summed(block))
    return copied


def write_train_form(module: nn.Module, path: Path) -> Path:
    """Export with every BatchNorm."""
    torch.onnx.export(
        module, (torch.rand(1, 3, 96, 96),), str(path), dynamo=False, opset_version=17,
        input_names=["x"], dynamic_axes={"x": {0: "n"}}, do_constant_folding=False,
        training=torch.onnx.TrainingMode.PRESERVE,
    )  # fmt: skip
    return path


def test_kernels_and_accuracy_do_not_depend_on_who_wrote_the_block(
    reptrt_data: Path, tmp_path: Path
) -> None:
    loaded = load_model("repvgg_a0", reptrt_data / WEIGHTS)
    preprocess = loaded.preprocess
    options = {"image_size": (96, 96), "mean": preprocess.mean, "std": preprocess.std}

    def run(model: object, folder: str, **more: object) -> Report:
        images = reptrt_data / "images"
        return reptrt.quantize(
            model, images / "imagenette_train", evaluate=images / "imagenette_val", seed=0,  # type: ignore[arg-type]
            workspace=tmp_path / folder, calibrator="mae", num_samples=64, progress=False, **more,
        ).report  # fmt: skip

    file = write_train_form(loaded.module, tmp_path / "train_form.onnx")
    reports = [
        run("repvgg_a0", "timm", weights=reptrt_data / WEIGHTS),
        run(hand_written(loaded.module), "hand", task="classification", **options),
        run(file, "onnx", task="classification", **options),
    ]
    found = [report.fusion for report in reports]
    assert len({(fusion.kernels, fusion.int8_layers) for fusion in found if fusion}) == 1
    first, *others = (report.accuracy for report in reports)
    assert first is not None
    for other in others:
        assert other is not None
        assert other.fp32 == pytest.approx(first.fp32, abs=0.01)
        assert other.quantized == pytest.approx(first.quantized, abs=0.5)  # 3 of 600 images
