"""COCO's mean average precision of detected boxes."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from numpy.typing import NDArray

from reptrt.engines.outputs.detection import Detections, FloatArray, boxes_to_image, detect
from reptrt.pipeline.data.batches import Batch
from reptrt.pipeline.data.coco import Annotations
from reptrt.pipeline.validation.resampled_precision import ClassMatches, resampled_map

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
    """Which boxes match which annotations; from it the mAP of all images, or of samples of them.

    Args:
        evaluator: that has not evaluated yet.
    """

    def __init__(self, evaluator: COCOeval_faster) -> None:
        self._evaluator = evaluator

    def mean_average_precision(self) -> MeanAveragePrecision:
        """Of all images."""
        self._evaluator.evaluate()
        self._evaluator.accumulate()
        # [IoU thresholds, recalls, classes, areas, limits on boxes]: one area, all, and one limit
        precision = np.asarray(self._evaluator.eval["precision"], dtype=np.float64)[:, :, :, 0, 0]
        return MeanAveragePrecision(_mean_percent(precision), _mean_percent(precision[0]))

    def of_samples(self, drawn: NDArray[np.int64]) -> NDArray[np.float64]:
        """`map_50_95` of each sample of the images `[samples, images drawn]`; one drawn twice counts as two."""
        return resampled_map(self._classes, drawn)

    @cached_property
    def _classes(self) -> list[ClassMatches]:
        """The matches by class, as COCO makes them at one IoU threshold after the other."""
        evaluator, boxes = self._evaluator, self._best_boxes()
        crowds = {key for key, one in evaluator.cocoGt.anns.items() if one["iscrowd"]}
        ids, last = (
            np.array([box["id"] for box in boxes], dtype=np.int64),
            len(evaluator.cocoDt.anns),
        )
        thresholds, hits, ignored = evaluator.params.iouThrs, [], []
        evaluator.evaluate()
        overlaps = evaluator.ious
        evaluator.computeIoU = lambda image, label: overlaps[image, label]
        evaluator._prepare = lambda: None  # the boxes stay the same
        for threshold in thresholds:
            evaluator.params.iouThrs = np.array([threshold])
            evaluator.evaluate()
            evaluator.accumulate()
            found = np.zeros((2, last + 1), dtype=bool)
            for pair in evaluator.eval["matched"]:
                box, truth = map(int, pair.split("_", 1))
                found[int(truth in crowds), box] = True
            hits.append(found[0, ids])
            ignored.append(found[1, ids])
        evaluator.params.iouThrs = thresholds
        del evaluator.computeIoU, evaluator._prepare
        return self._by_class(boxes, np.array(hits), np.array(ignored))

    def _by_class(
        self,
        boxes: Sequence[Mapping[str, Any]],
        hits: NDArray[np.bool_],
        ignored: NDArray[np.bool_],
    ) -> list[ClassMatches]:
        evaluator = self._evaluator
        places = {int(index): place for place, index in enumerate(evaluator.params.imgIds)}
        images = np.array([places[box["image_id"]] for box in boxes], dtype=np.int64)
        labels = np.array([box["category_id"] for box in boxes], dtype=np.int64)
        annotated = np.zeros((len(evaluator.params.catIds), len(places)), dtype=np.int64)
        for one in evaluator.cocoGt.anns.values():
            annotated[one["category_id"], places[one["image_id"]]] += not one["iscrowd"]
        chosen = [labels == label for label in range(len(annotated))]
        return [
            ClassMatches(images[mask], hits[:, mask], ignored[:, mask], counts)
            for mask, counts in zip(chosen, annotated, strict=True)
        ]

    def _best_boxes(self) -> list[Mapping[str, Any]]:
        """Boxes that COCO looks at, by falling score: of each class the best ones of an image."""
        taken: Counter[tuple[int, int]] = Counter()
        kept = []
        for box in sorted(self._evaluator.cocoDt.anns.values(), key=lambda one: -one["score"]):
            group = box["image_id"], box["category_id"]
            taken[group] += 1
            if taken[group] <= _MOST_BOXES:
                kept.append(box)
        return kept


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
        )
        parameters = evaluator.params
        parameters.areaRng, parameters.areaRngLbl = parameters.areaRng[:1], ["all"]
        parameters.maxDets = [_MOST_BOXES]
        return Matches(evaluator)

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
            {"image_id": index, "category_id": label, "bbox": box, "score": score}
            for index, found in sorted(self._found.items())
            for box, label, score in zip(
                _as_xywh(found.boxes.astype(np.float64)),
                found.labels.tolist(),
                found.scores.tolist(),
                strict=True,
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
    rows: list[list[float]] = np.hstack((boxes[:, :2], boxes[:, 2:] - boxes[:, :2])).tolist()
    return rows
