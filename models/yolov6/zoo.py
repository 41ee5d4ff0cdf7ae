"""YOLOv6 by zoo name: what each is, and the release file with its weights.

The files are those that https://github.com/meituan/YOLOv6 links to; it publishes no digests. Those of
release 3.0 are linked under the tag 0.4.0, those of release 2.0 under 0.2.0.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import nn

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
        name="yolov6n_demo",
        task="detection",
        build=_builder("yolov6n_demo", _DEMO_CLASSES),
        num_classes=_DEMO_CLASSES,
        preprocess=_PREPROCESS,
        description="YOLOv6-N's layout at half its width, trained on generated scenes;"
        " weights included",
        bundled_weights=_DEMO_WEIGHTS,
    )


def _official(name: str, tag: str, filename: str, description: str) -> ModelSpec:
    return ModelSpec(
        name=name,
        task="detection",
        build=_builder(name, _COCO_CLASSES),
        num_classes=_COCO_CLASSES,
        preprocess=_PREPROCESS,
        description=description,
        weights=PublishedWeights(
            url=f"{_RELEASES}/{tag}/{filename}",
            filename=f"yolov6-{tag}/{filename}",
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
    spec.name: spec
    for spec in (
        _demo(),
        _official("yolov6n", "0.4.0", "yolov6n.pt", "YOLOv6-N, release 3.0"),
        _official("yolov6s", "0.4.0", "yolov6s.pt", "YOLOv6-S, release 3.0"),
        _official("yolov6m", "0.4.0", "yolov6m.pt", "YOLOv6-M, release 3.0"),
        _official("yolov6l", "0.4.0", "yolov6l.pt", "YOLOv6-L, release 3.0"),
        _official("yolov6n_base", "0.3.0", "yolov6n_base.pt", "YOLOv6-N, plain convolutions"),
        _official("yolov6s_base", "0.3.0", "yolov6s_base.pt", "YOLOv6-S, plain convolutions"),
        _official("yolov6m_base", "0.3.0", "yolov6m_base.pt", "YOLOv6-M, plain convolutions"),
        _official("yolov6l_base", "0.3.0", "yolov6l_base.pt", "YOLOv6-L, plain convolutions"),
        _official("yolov6n_v2", "0.2.0", "yolov6n.pt", "YOLOv6-N, release 2.0"),
        _official("yolov6t", "0.2.0", "yolov6t.pt", "YOLOv6-T, release 2.0"),
        _official("yolov6s_v2", "0.2.0", "yolov6s.pt", "YOLOv6-S, release 2.0"),
        _official("yolov6m_v2", "0.2.0", "yolov6m.pt", "YOLOv6-M, release 2.0"),
        _official("yolov6l_relu", "0.2.0", "yolov6l_relu.pt", "YOLOv6-L with ReLU, release 2.0"),
        _official("yolov6l_v2", "0.2.0", "yolov6l.pt", "YOLOv6-L, release 2.0"),
    )
}
