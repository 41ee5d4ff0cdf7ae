"""Train a small network with a few channels twenty times as wide as the others, on purpose.

MobileNetV3 and EfficientNet are said to have such channels; no weights of theirs are among those of docs/results.md.
A network of timm learns what the RepVGG-A0 there answers to each image. Then the BatchNorms in front of
activations, of some channels, are scaled, the layers that read these channels take the factor back, and the
network learns on: behind HardSwish or SiLU the factor is not exact. The checkpoint is for `channel_scaling.py`,
and for `reptrt engine timm:NAME --weights FILE`.

1,700 photographs make a weak network, whose classes a little noise changes. `--shapes FOLDER` draws as many images as it
wants, single shapes of the demo's scenes, and writes `calibration` and `evaluation` there.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from torch.nn import functional

from reptrt.models.demo.scenes import EVALUATION, generate_scene
from reptrt.models.demo.shapes import CLASSES
from reptrt.models.load import load_model
from reptrt.models.spec import PreprocessOverrides
from reptrt.pipeline.data.image_folder import find_images

Known = tuple[tuple[torch.Tensor, torch.Tensor], Sequence[str], Sequence[float], Sequence[float]]
"""Images [n, 3, h, w] with answers [n, classes]; names of the classes; mean and deviation of pixels."""

FOLDERS = ("imagenette_train", "imagenet_calib", "imagenet_val")
SEEN, HELD_OUT = range(3000), EVALUATION[:250]
"""Scenes of shapes to learn from, and to measure with."""
BATCH, SIZE, SPARE, STORED = 64, 64, 12, 112
BLOCKS = (("bn1", "conv_dw"), ("bn2", "conv_pwl"))
"""Of inverted residuals: a BatchNorm, and what reads it behind its activation."""


def main() -> None:
    """Train, plant, train on, and write the checkpoint."""
    options = parse_options()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    known, classes, mean, std = photographs() if options.shapes is None else shapes(options.shapes)
    network = timm.create_model(options.model, num_classes=len(classes))
    learn(network, known, options.steps, 3e-3)
    planted = plant(network, options.factor, options.share)
    print(f"{planted} channels planted", flush=True)
    learn(network, known, options.more_steps, 3e-4)
    checkpoint = {
        "state_dict": network.state_dict(), "classes": list(classes),
        "image_size": (SIZE, SIZE), "mean": list(mean), "std": list(std),
    }  # fmt: skip
    torch.save(checkpoint, options.output)


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="of timm, with inverted residuals")
    parser.add_argument("output", type=Path, help="the checkpoint that is written")
    parser.add_argument("--shapes", type=Path, metavar="FOLDER", help="drawn, not photographs")
    parser.add_argument("--factor", type=float, default=20.0, help="1 plants nothing")
    parser.add_argument("--share", type=float, default=0.02, help="of the channels; at least one")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--more-steps", type=int, default=300, help="after planting")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch")
    return parser.parse_args()


def photographs() -> Known:
    """All of them, and what the RepVGG-A0 of docs/results.md answers."""
    files = Path(os.environ["REPTRT_DATA"])
    path = files / "weights" / "repvgg_a0_imagenette.pth"
    teacher = load_model("repvgg_a0", path, PreprocessOverrides(None, None, None), lambda *_: None)
    mean, std = teacher.preprocess.mean, teacher.preprocess.std
    pixels = torch.cat([read(files / "images" / name) for name in FOLDERS])
    images = normalized(pixels, mean, std)
    with torch.no_grad():
        answers = [teacher.module(some).softmax(1) for some in images[..., 8:-8, 8:-8].split(50)]
    sides = (SIZE + SPARE, SIZE + SPARE)
    images = functional.interpolate(images, sides, mode="bilinear", antialias=True)
    return (images, torch.cat(answers)), teacher.classes or (), mean, std


def shapes(folder: Path) -> Known:
    """Drawn to learn from, with their labels as answers; others, to measure with, in `folder`."""
    for name, seeds in (("calibration", SEEN[:100]), ("evaluation", HELD_OUT)):
        for index, (pixels, label) in enumerate(drawn(seeds)):
            file = folder / name / CLASSES[label] / f"{index:05}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            edge = SPARE // 2
            Image.fromarray(pixels[edge:-edge, edge:-edge]).save(file)
    pixels, labels = zip(*drawn(SEEN), strict=True)
    stacked = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
    answers = functional.one_hot(torch.tensor(labels), len(CLASSES)).float()
    mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    return (normalized(stacked, mean, std), answers), CLASSES, mean, std


def drawn(seeds: Sequence[int]) -> Iterator[tuple[NDArray[np.uint8], int]]:
    """Every shape of the scenes `seeds`, cut out with a margin: [SIZE + SPARE, SIZE + SPARE, 3], and its class."""
    for seed in seeds:
        scene = generate_scene(seed)
        for (x1, y1, x2, y2), label in zip(
            scene.boxes.tolist(), scene.labels.tolist(), strict=True
        ):
            side, x, y = 1.3 * max(x2 - x1, y2 - y1), (x1 + x2) / 2, (y1 + y2) / 2
            box = (x - side / 2, y - side / 2, x + side / 2, y + side / 2)
            image = Image.fromarray(scene.image).transform(
                (SIZE + SPARE, SIZE + SPARE), Image.Transform.EXTENT, box, Image.Resampling.BILINEAR
            )
            yield np.asarray(image), label


def normalized(pixels: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Float images of uint8 `pixels` [n, 3, h, w]."""
    shift, scale = (torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std))
    return (pixels.float() / 255 - shift) / scale


def read(folder: Path) -> torch.Tensor:
    """All images, short side and crop of `STORED` pixels: uint8 [n, 3, h, w]."""
    found = []
    for file in find_images(folder):
        image = Image.open(file).convert("RGB")
        scale = STORED / min(image.size)
        image = image.resize([max(STORED, round(side * scale)) for side in image.size])
        left, top = ((side - STORED) // 2 for side in image.size)
        pixels = np.asarray(image.crop((left, top, left + STORED, top + STORED)))
        found.append(torch.from_numpy(pixels.copy()).permute(2, 0, 1))
    return torch.stack(found)


def learn(
    network: nn.Module, known: tuple[torch.Tensor, torch.Tensor], steps: int, rate: float
) -> None:
    """Fit `network` to `known`, images [n, 3, h, w] and answers [n, classes]: random crops, pairs mixed."""
    images, answers = known
    optimizer = torch.optim.AdamW(network.parameters(), rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, max(1, steps), pct_start=0.1)
    started, mean = time.time(), 0.0
    network.train()
    for step in range(1, steps + 1):
        chosen = torch.randint(len(images), (BATCH,))
        top, left = torch.randint(SPARE + 1, (2,)).tolist()
        crop = images[chosen, :, top : top + SIZE, left : left + SIZE]
        share, crop = 1 - 0.2 * torch.rand(()), crop.flip(3) if step % 2 else crop
        x, wanted = (share * one + (1 - share) * one.roll(1, 0) for one in (crop, answers[chosen]))
        loss = functional.cross_entropy(network(x), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        mean += (loss.item() - mean) / min(step, 100)
        if step % 100 == 0:
            print(f"{step}: loss {mean:.3f}, {time.time() - started:.0f} s", flush=True)
    network.eval()


@torch.no_grad()
def plant(network: nn.Module, factor: float, share: float) -> int:
    """Scale some channels behind each BatchNorm of an inverted residual, and their readers back; how many."""
    generator, count = torch.Generator().manual_seed(0), 0
    for block in network.modules():
        if not all(hasattr(block, name) for name in ("conv_pw", "conv_dw", "conv_pwl")):
            continue
        for norm_name, reader_name in BLOCKS:
            norm, reader = getattr(block, norm_name), getattr(block, reader_name)
            channels = len(norm.weight)
            chosen = torch.randperm(channels, generator=generator)[
                : max(1, round(share * channels))
            ]
            norm.weight[chosen] *= factor
            norm.bias[chosen] *= factor
            readers = [reader]
            if norm_name == "bn2" and hasattr(block.se, "conv_reduce"):
                readers.append(block.se.conv_reduce)
            for one in readers:
                columns = one.weight if one.groups > 1 else one.weight.transpose(0, 1)
                columns[chosen] /= factor
            count += len(chosen)
    return count


if __name__ == "__main__":
    main()
