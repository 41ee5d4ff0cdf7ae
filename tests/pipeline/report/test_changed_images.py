"""Images that INT8 sees otherwise than FP32, from the run to the page."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

import reptrt
from tests.command_line import TinyProject

PLAIN = {"image_size": (32, 32), "mean": (0.0,) * 3, "std": (1.0,) * 3, "layout": "crop"}
PLAIN |= {"calibrator": "minmax", "quantize": "all", "target": "cpu", "channel_scaling": "none"}


def quantize(
    model: object, images: object, evaluate: object, folder: Path, **more: object
) -> reptrt.Result:
    return reptrt.quantize(
        model, images, evaluate=evaluate, workspace=folder, progress=False, **PLAIN, **more
    )


def test_a_page_shows_images_whose_class_changed_with_both_guesses(
    tiny: TinyProject, red_and_blue: Path, tmp_path: Path
) -> None:
    result = quantize("tiny_models:collapsing", red_and_blue, red_and_blue, tmp_path)
    page = result.page.read_text(encoding="utf-8")
    shown = page.partition("Images whose class changed</h2>")[2].partition("</section>")[0]
    assert shown.count("data:image/jpeg") == 6
    rows = re.findall(r'<tr><td(.*?)>(.*?)</td><td class="num">(.*?) %</td>', shown)
    assert len(rows) == 12  # six images of two classes
    for is_right, name, percent in rows[::2]:  # FP32 is right in all of them
        assert is_right == ' class="strong"'
        assert name in ("class 0", "class 1")
        assert float(percent) > 50
    assert len(page) < 200_000


def test_a_model_that_changes_no_class_shows_no_image(
    tiny: TinyProject, red_and_blue: Path, tmp_path: Path
) -> None:
    page = quantize("tiny_models:colours", red_and_blue, red_and_blue, tmp_path).page
    assert "whose class changed" not in page.read_text(encoding="utf-8")


class Outlier(nn.Module):
    """Class 1 where an image is red, 2 where it is blue; a channel of 1000 leaves INT8 nothing of either."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.neck, self.head = (nn.Conv2d(3, 3, 1) for _ in range(3))
        self.body.weight.data = torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, 0, 0]])[:, :, None, None]
        self.body.bias.data = torch.tensor([0.0, 0, 1000])
        self.neck.weight.data, self.neck.bias.data = torch.eye(3)[:, :, None, None], torch.zeros(3)
        self.head.weight.data = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]])[:, :, None, None]
        self.head.bias.data = torch.tensor([0.5, 0, 0])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.neck(torch.relu(self.body(images))))


def test_a_page_shows_masks_side_by_side(tmp_path: Path) -> None:
    """Left half red, right half blue: FP32 sees both classes, INT8 neither."""
    picture = np.zeros((32, 32, 3), np.uint8)
    picture[:, :16, 0] = picture[:, 16:, 2] = 255
    classes = np.where(np.arange(32) < 16, 1, 2).astype(np.uint8)[None].repeat(32, 0)
    for name, pixels in (("images", picture), ("masks", classes)):
        (tmp_path / "set" / name).mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / "set" / name / "one.png")
    result = quantize(
        Outlier(),
        tmp_path / "set" / "images",
        tmp_path / "set",
        tmp_path / "build",
        task="segmentation",
        min_snr=0.0,
    )
    page = result.page.read_text(encoding="utf-8")
    assert "one.png" in page
    assert "100.00\u00a0% of the pixels changed" in page
    fp32, quantized = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(one)))).astype(int)
        for one in re.findall(r"data:image/jpeg;base64,([^\"]+)", page)
    )
    assert np.abs(quantized[100, 50] - (255, 0, 0)).max() < 20  # class 0 stays as it is
    assert np.abs(fp32[100, 50] - quantized[100, 50]).max() > 60
