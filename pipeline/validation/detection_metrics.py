"""COCO's mean average precision of detected boxes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from numpy.typing import NDArray

from reptrt.engines.outputs.detection import Detections, FloatArray, boxes_to_image, detect
from reptrt.pipeline.data.batches import Batch
from reptrt.pipeline.data.coco import Annotations

logger = logging.getLogger(__name__)

_MOST_BOXES = 100  # of an image, the best ones


@dataclass(frozen=True)
class MeanAveragePrecision:
    """Averages over the annotated classes, in percent.

    Attributes:
        map_50_95: Over the IoU thresholds 0.50, 0.55 .. 0.95.
        map_50: At IoU 0.50.
    """

    map_50_95: float
    map_50: float


class Matches:
    """Which boxes match which annotations; from it the mAP of all images, or of a sample of them."""

    def __init__(self, evaluator: COCOeval_faster, num_images: int) -> None:
        self._evaluator = evaluator
        found = evaluator._evalImgs_cpp  # [classes x images], in the order of the images' ids
        self._found = [found[at : at + num_images] for at in range(0, len(found), num_images)]

    def mean_average_precision(
        self, drawn: NDArray[np.int64] | None = None
    ) -> MeanAveragePrecision:
        """Of all images, or of `drawn` ones `[num_images]`; one drawn twice counts as two."""
        order = range(len(self._found[0])) if drawn is None else drawn.tolist()
        self._evaluator._evalImgs_cpp = [images[index] for images in self._found for index in order]
        self._evaluator.accumulate()
        # [IoU thresholds, recalls, classes, areas, limits on boxes]: one area, all, and one limit
        precision = np.asarray(self._evaluator.eval["precision"], dtype=np.float64)[:, :, :, 0, 0]
        return MeanAveragePrecision(_mean_percent(precision), _mean_percent(precision[0]))


class CocoAccuracy:
    """Mean average precision as pycocotools measures it: all areas, the 100 best boxes per image.

    Args:
        annotations: Of each image of the set.
        num_classes: Of the model.
    """

    def __init__(self, annotations: Sequence[Annotations], num_classes: int) -> None:
        self._annotations = annotations
        self._num_classes = num_classes
        self._found: dict[int, Detections] = {}

    def update(self, indices: Sequence[int], detections: Sequence[Detections]) -> None:
        """Add the detections, in image pixels, of the images at `indices` of the set."""
        for index, found in zip(indices, detections, strict=True):
            self._found[int(index)] = found

    @property
    def num_images(self) -> int:
        """How many images were added; only these are evaluated."""
        return len(self._found)

    def compute(self) -> MeanAveragePrecision:
        """Evaluate what was added; 0 where none of these images is annotated."""
        return self.match().mean_average_precision()

    def match(self) -> Matches:
        """Match what was added with the annotations, image by image."""
        images: list[Mapping[str, object]] = [{"id": index} for index in sorted(self._found)]
        categories = [{"id": label} for label in range(self._num_classes)]
        truth = COCO(
            {"images": images, "categories": categories, "annotations": self._truth()},
            print_function=logger.debug,
        )
        evaluator = COCOeval_faster(
            truth,
            truth.loadRes(self._results()),
            iouType="bbox",
            print_function=logger.debug,
            separate_eval=True,
        )
        parameters = evaluator.params
        parameters.areaRng, parameters.areaRngLbl = parameters.areaRng[:1], ["all"]
        parameters.maxDets = [_MOST_BOXES]
        evaluator.evaluate()
        return Matches(evaluator, len(images))

    def _truth(self) -> list[Mapping[str, object]]:
        records: list[Mapping[str, object]] = []
        for index in sorted(self._found):
            objects = self._annotations[index]
            for row, box in enumerate(_as_xywh(objects.boxes)):
                records.append(
                    {
                        "id": len(records) + 1,
                        "image_id": index,
                        "category_id": int(objects.labels[row]),
                        "bbox": box,
                        "area": float(objects.areas[row]),
                        "iscrowd": int(objects.crowd[row]),
                    }
                )
        return records

    def _results(self) -> list[Mapping[str, object]]:
        return [
            {"image_id": index, "category_id": int(label), "bbox": box, "score": float(score)}
            for index, found in sorted(self._found.items())
            for box, label, score in zip(
                _as_xywh(found.boxes.astype(np.float64)), found.labels, found.scores, strict=True
            )
        ]


def match_boxes(
    annotations: Sequence[Annotations], num_classes: int, found: Sequence[Detections]
) -> Matches:
    """Match the boxes `found` in every image, in its pixels, with what it is annotated with."""
    accuracy = CocoAccuracy(annotations, num_classes)
    accuracy.update(range(len(found)), found)
    return accuracy.match()


def detect_in_images(
    outputs: Sequence[FloatArray], strides: Sequence[int], batch: Batch
) -> list[Detections]:
    """Turn the network's maps of a letterboxed batch into boxes in pixels of each image."""
    return boxes_in_images(detect(outputs, strides), batch)


def boxes_in_images(found: Sequence[Detections], batch: Batch) -> list[Detections]:
    """Move the boxes of a letterboxed batch from the canvas to pixels of each image."""
    places = zip(found, batch.letterboxes, batch.image_sizes, strict=True)
    return [
        Detections(boxes_to_image(one.boxes, placement, size), one.scores, one.labels)
        for one, placement, size in places
    ]


def _mean_percent(precision: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> float:
    """Average what is defined: -1 stands for a class without annotations."""
    defined = precision[precision > -1]
    return 100.0 * float(defined.mean()) if defined.size else 0.0


def _as_xywh(boxes: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> list[list[float]]:
    sides = np.concatenate((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), axis=1)
    return [[float(number) for number in box] for box in sides]
