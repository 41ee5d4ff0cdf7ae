"""YOLOv6 by zoo name: what each is, and the release file with its weights.

The files are those that https://github.com/meituan/YOLOv6 links to; it publishes no digests.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import nn

from reptrt.models.names import DEMO, YOLOV6, Release
from reptrt.models.spec import ModelSpec, Preprocess, PublishedWeights
from reptrt.models.yolov6.network import build_yolov6

_RELEASES = "https://github.com/meituan/YOLOv6/releases/download"
_COCO_CLASSES = 80
_DEMO_CLASSES = 8
_DEMO_WEIGHTS = Path(__file__).parents[1] / "demo" / "yolov6n_demo.safetensors"
_PREPROCESS = Preprocess(
    image_size=(640, 640), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), layout="letterbox"
)


def _demo() -> ModelSpec:
    return ModelSpec(
        name=DEMO,
        task="detection",
        build=_builder(DEMO, _DEMO_CLASSES),
        num_classes=_DEMO_CLASSES,
        preprocess=_PREPROCESS,
        description="YOLOv6-N's layout at half its width, trained on generated scenes;"
        " weights included",
        bundled_weights=_DEMO_WEIGHTS,
    )


def _official(name: str, release: Release) -> ModelSpec:
    return ModelSpec(
        name=name,
        task="detection",
        build=_builder(name, _COCO_CLASSES),
        num_classes=_COCO_CLASSES,
        preprocess=_PREPROCESS,
        description=release.description,
        weights=PublishedWeights(
            url=f"{_RELEASES}/{release.tag}/{release.filename}",
            filename=f"yolov6-{release.tag}/{release.filename}",
            sha256=None,
            licence="GPL-3.0",
            source="Meituan, trained on COCO",
        ),
    )


def _builder(name: str, default_classes: int) -> Callable[[int | None, tuple[int, int]], nn.Module]:
    def build(classes: int | None, image_size: tuple[int, int]) -> nn.Module:
        return build_yolov6(name, classes or default_classes)

    return build


ZOO: dict[str, ModelSpec] = {
    DEMO: _demo(),
    **{name: _official(name, release) for name, release in YOLOV6.items()},
}
