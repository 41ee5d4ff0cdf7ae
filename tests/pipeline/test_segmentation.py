"""Segmentation as a task: masks, their mean IoU, and one line for each mistake."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import reptrt
from reptrt.models.spec import Preprocess
from reptrt.models.task import OutputError, count_classes
from reptrt.pipeline.data.masks import VOID, MaskSet, open_masks
from reptrt.pipeline.data.preprocess import DataError, prepare, prepare_mask
from reptrt.pipeline.validation.segmentation_metrics import MaskAccuracy, read_classes

SIDE, COUNT = 32, 60
COLOURS = np.array([[30, 30, 30], [220, 60, 40], [40, 90, 230]], dtype=np.uint8)
PLAIN = Preprocess((SIDE, SIDE), (0.0,) * 3, (1.0,) * 3)


class Fcn(nn.Module):
    """A body of stride 2 and a head as torchvision's FCN has them: scores under `out`."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.ReLU(),
            nn.Conv2d(12, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(),
        )  # fmt: skip
        self.classifier = nn.Conv2d(12, 3, 1)

    def forward(self, images: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
        scores = self.classifier(self.body(images))
        out = nn.functional.interpolate(scores, scale_factor=2.0, mode="bilinear")
        return OrderedDict(out=out)


def scene(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy picture [h, w, 3] with a rectangle of each colour, and its classes [h, w]."""
    random = np.random.default_rng(seed)
    classes = np.zeros((SIDE, SIDE), np.uint8)
    for index in (1, 2):
        x, y = random.integers(0, SIDE - 12, 2)
        classes[y : y + 12, x : x + 12] = index
    noise = random.integers(-30, 31, (SIDE, SIDE, 3))
    return np.clip(COLOURS[classes].astype(int) + noise, 0, 255).astype(np.uint8), classes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scenes")
    for name in ("images", "masks"):
        (root / name).mkdir()
    for seed in range(COUNT):
        picture, classes = scene(seed)
        classes[0] = VOID
        Image.fromarray(picture).save(root / "images" / f"{seed:02}.png")
        Image.fromarray(classes).save(root / "masks" / f"{seed:02}.png")
    return root


def batch(first: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    scenes = [scene(seed) for seed in range(first, first + count)]
    pictures = np.stack([prepare(Image.fromarray(p), PLAIN).tensor for p, _ in scenes])
    return torch.from_numpy(pictures), torch.from_numpy(np.stack([c for _, c in scenes])).long()


@pytest.fixture(scope="module")
def trained() -> Fcn:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Fcn().train()
        optimizer = torch.optim.Adam(network.parameters(), 0.02)
        images, masks = batch(100, 32)
        for _ in range(40):
            loss = nn.functional.cross_entropy(network(images)["out"], masks)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return network.eval()


def quantize(
    network: nn.Module, workspace: Path, evaluate: object, **more: object
) -> reptrt.Result:
    known = {"task": "segmentation", "image_size": (SIDE, SIDE), "calibrator": "minmax"}
    images = batch(200, 8)[0]
    return reptrt.quantize(
        network, images, evaluate=evaluate, workspace=workspace, target="cpu", progress=False,
        mean=(0.0,) * 3, std=(1.0,) * 3, layout="crop", **{**known, **more},
    )  # fmt: skip


def test_a_trained_network_keeps_its_masks_and_passes_the_gate(
    trained: Fcn, folder: Path, tmp_path: Path
) -> None:
    result = quantize(trained, tmp_path, folder, max_drop=2.0)
    accuracy = result.report.accuracy
    assert accuracy is not None
    assert (accuracy.metric, accuracy.num_images) == ("miou", COUNT)
    assert accuracy.fp32 is not None
    assert accuracy.fp32 > 80
    assert accuracy.agreement is not None
    assert accuracy.agreement > 98
    assert accuracy.drop_interval is not None
    assert accuracy.drop_interval[0] <= (accuracy.drop or 0.0) <= accuracy.drop_interval[1] < 2
    assert accuracy.chance is not None
    assert accuracy.chance < 50
    assert result.verdict.decision == "passed"
    assert "mIoU" in repr(result)
    network, (images, masks) = trained, batch(0, COUNT)
    masks[:, 0] = VOID
    expected = MaskAccuracy(COUNT)
    with torch.no_grad():
        found = network(images)["out"].argmax(1).numpy().astype(np.uint8)
    for index in range(COUNT):
        expected.update(index, found[index], masks[index].numpy().astype(np.uint8))
    assert accuracy.fp32 == pytest.approx(expected.mean_iou(), abs=0.02)
    loader = [batch(0, COUNT)]
    loader[0][1][:, 0] = VOID
    again = quantize(trained, tmp_path, loader).report.accuracy
    assert again is not None
    assert (again.fp32, again.quantized) == (accuracy.fp32, accuracy.quantized)


def test_mean_iou_by_hand() -> None:
    accuracy = MaskAccuracy(2)
    accuracy.update(0, np.uint8([[0, 0], [1, 1]]), np.uint8([[0, 1], [1, VOID]]))
    assert accuracy.mean_iou() == 50.0  # 0: 1 of 2, 1: 1 of 2; void is left out
    accuracy.update(1, np.uint8([[2, 2]]), np.uint8([[2, 2]]))
    assert accuracy.mean_iou() == pytest.approx(100 * (0.5 + 0.5 + 1) / 3)
    assert accuracy.mean_iou(np.array([1, 1])) == 100.0


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (np.float32([[[[0, 3]], [[1, 2]]]]).reshape(1, 2, 1, 2), [[1, 0]]),
        (np.float32([[[[0.4, 0.6]]]]), [[0, 1]]),
        (np.float32([[[[-2, 3]]]]), [[0, 1]]),
        (np.int64([[[7, 2]]]), [[7, 2]]),
        (np.int64([[[[7, 2]]]]), [[7, 2]]),
    ],
    ids=["scores", "share of the foreground", "its logit", "classes", "classes with an axis"],
)
def test_outputs_of_every_form_become_classes(output: np.ndarray, expected: list[int]) -> None:
    assert read_classes(output, (1, 2)).tolist() == [expected]


def test_a_coarse_map_is_enlarged_by_its_scores() -> None:
    scores = np.float32([[[[0, 4]], [[1, 1]]]]).reshape(1, 2, 1, 2)
    assert read_classes(scores, (1, 8)).tolist() == [[[1, 1, 1, 0, 0, 0, 0, 0]]]


@pytest.mark.parametrize("layout", ["crop", "letterbox"])
@pytest.mark.parametrize("size", [(40, 20), (20, 40), (8, 8)])
def test_a_mask_is_fitted_as_its_image(layout: str, size: tuple[int, int]) -> None:
    classes = np.full(size, 90, np.uint8)
    classes[: size[0] // 2] = 200
    picture = Image.fromarray(np.stack([classes] * 3, axis=-1))
    chosen = Preprocess((16, 16), (0.0,) * 3, (1.0,) * 3, layout=layout)  # type: ignore[arg-type]
    pixels = np.rint(prepare(picture, chosen).tensor[0] * 255)
    mask = prepare_mask(classes, chosen, 114)
    assert mask.shape == (16, 16)
    assert np.mean(np.abs(mask - pixels) < 60) > 0.9  # but for the row in between


def with_mask(folder: Path, mask: Image.Image) -> Path:
    for name in ("images", "masks"):
        (folder / name).mkdir()
    Image.new("RGB", (SIDE, SIDE)).save(folder / "images" / "a.jpg")
    mask.save(folder / "masks" / "a.png")
    return folder


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (Image.new("RGB", (SIDE, SIDE)), "its pixels are RGB, not the numbers of classes"),
        (Image.new("L", (SIDE, 4)), "a.png: is 32x4 pixels, and its image a.jpg 32x32"),
        (Image.new("L", (SIDE, SIDE), 9), r"holds class 9 at x 0, y 0; the model has the classes 0\.\.2"),
    ],
)  # fmt: skip
def test_a_mask_that_does_not_fit_is_named(mask: Image.Image, reason: str, tmp_path: Path) -> None:
    opened = open_masks(with_mask(tmp_path, mask), PLAIN, 3)
    with pytest.raises(DataError, match=reason):
        opened.classes_of(0)


def test_a_palette_holds_classes_and_void_fits_any_model(tmp_path: Path) -> None:
    mask = Image.new("P", (SIDE, SIDE), VOID)
    mask.putpalette([255, 0, 0] * 256)
    opened = open_masks(with_mask(tmp_path, mask), PLAIN, 3)
    assert isinstance(opened, MaskSet)
    assert (opened.classes_of(0) == VOID).all()


def test_images_and_masks_need_each_other(tmp_path: Path) -> None:
    with_mask(tmp_path, Image.new("L", (SIDE, SIDE)))
    Image.new("L", (4, 4)).save(tmp_path / "masks" / "b.png")
    with pytest.raises(DataError, match=r"b.png: 1 of 2 masks have no image of their name"):
        open_masks(tmp_path, PLAIN, 3)
    (tmp_path / "masks" / "a.png").unlink()
    with pytest.raises(DataError, match=r"a.jpg: 1 of 1 images have no mask of their name"):
        open_masks(tmp_path, PLAIN, 3)
    (tmp_path / "masks" / "b.png").unlink()
    (tmp_path / "masks").rmdir()
    with pytest.raises(DataError, match=r"no images/ and masks/ in it, but images; give a folder"):
        open_masks(tmp_path, PLAIN, 3)
    with pytest.raises(DataError, match="no such folder"):
        open_masks(tmp_path / "none", PLAIN, 3)


@pytest.mark.parametrize(
    ("shape", "classes"), [((1, 21, 8, 8), 21), ((1, 1, 8, 8), 2), ((1, 8, 8), 0)]
)
def test_the_first_output_tells_the_classes(shape: tuple[int, ...], classes: int) -> None:
    assert count_classes("segmentation", [shape, (1, 5)], (8, 8)) == classes


def test_what_is_no_map_is_no_segmentation() -> None:
    with pytest.raises(OutputError, match=r"the first output of a segmentation network must be"):
        count_classes("segmentation", [(1, 10)], (8, 8))


def test_a_loader_without_masks_is_refused(trained: Fcn, tmp_path: Path) -> None:
    images = torch.zeros(2, 3, SIDE, SIDE)
    with pytest.raises(DataError, match=r"integers \[2, 32, 32\], not int64 \[2\]"):
        quantize(trained, tmp_path, [(images, torch.zeros(2, dtype=torch.int64))])
    with pytest.raises(DataError, match="masks hold class 3, and the network tells 3 classes"):
        quantize(trained, tmp_path, [(images, torch.full((2, SIDE, SIDE), 3))])
