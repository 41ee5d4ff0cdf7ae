"""Training loss of the demo detector: task-aligned assignment, varifocal and GIoU losses.

Assignment: TOOD (https://arxiv.org/abs/2108.07755, equations 6 and 7) with YOLOv6's constants. Class
loss: VarifocalNet (https://arxiv.org/abs/2008.13367, equation 2). Box loss: GIoU
(https://arxiv.org/abs/1902.09630) instead of YOLOv6-N's SIoU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

_TOP_K = 10
_SCORE_POWER, _IOU_POWER = 1.0, 6.0
_FOCAL_ALPHA, _FOCAL_GAMMA = 0.75, 2.0
_BOX_WEIGHT = 2.5
_TINY = 1e-9


@dataclass(frozen=True)
class Targets:
    """Ground truth of a batch, padded to the same number of boxes.

    Attributes:
        boxes: `[n, g, 4]` x1 y1 x2 y2 in pixels.
        labels: `[n, g]` int64.
        present: `[n, g]` bool, False for padding.
    """

    boxes: torch.Tensor
    labels: torch.Tensor
    present: torch.Tensor


def detection_loss(
    maps: Sequence[tuple[torch.Tensor, torch.Tensor]], strides: Sequence[int], targets: Targets
) -> torch.Tensor:
    """Return the scalar loss of the raw maps of `Yolov6.forward_raw`."""
    logits = torch.cat([scores.flatten(2) for scores, _ in maps], dim=2).transpose(1, 2).float()
    boxes, centres = _decode([distances.float() for _, distances in maps], strides)
    aligned = _assign(logits.detach().sigmoid(), boxes.detach(), centres, targets)
    total = aligned.scores.sum().clamp(min=1.0)
    weight = torch.where(
        aligned.scores > 0,
        aligned.scores,
        _FOCAL_ALPHA * logits.detach().sigmoid() ** _FOCAL_GAMMA,
    )
    class_loss = (
        F.binary_cross_entropy_with_logits(logits, aligned.scores, weight, reduction="sum") / total
    )
    chosen = aligned.positive
    quality = aligned.scores.sum(dim=2)[chosen]
    overlap = generalized_iou(boxes[chosen], aligned.boxes[chosen])
    return class_loss + _BOX_WEIGHT * ((1 - overlap) * quality).sum() / total


def _decode(
    distances: Sequence[torch.Tensor], strides: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return boxes `[n, a, 4]` and cell centres `[a, 2]`, both in pixels."""
    boxes, centres = [], []
    for level, stride in zip(distances, strides, strict=True):
        height, width = level.shape[2:]
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        centre = (torch.stack((x, y), dim=-1).reshape(-1, 2) + 0.5) * stride
        reach = level.flatten(2).transpose(1, 2) * stride
        boxes.append(torch.cat((centre - reach[..., :2], centre + reach[..., 2:]), dim=2))
        centres.append(centre)
    return torch.cat(boxes, dim=1), torch.cat(centres)


@dataclass(frozen=True)
class _Aligned:
    """What each cell should predict: scores `[n, a, c]`, boxes `[n, a, 4]`, positive `[n, a]`."""

    scores: torch.Tensor
    boxes: torch.Tensor
    positive: torch.Tensor


@torch.no_grad()
def _assign(
    scores: torch.Tensor, boxes: torch.Tensor, centres: torch.Tensor, targets: Targets
) -> _Aligned:
    """Give every ground truth the `_TOP_K` cells inside it that predict it best."""
    overlap = _iou(targets.boxes[:, :, None], boxes[:, None])  # [n, g, a]
    class_score = scores.transpose(1, 2).gather(
        1, targets.labels[..., None].expand(-1, -1, scores.shape[1])
    )
    inside = _inside(centres, targets.boxes) & targets.present[..., None]
    metric = class_score**_SCORE_POWER * overlap**_IOU_POWER * inside
    best = metric.topk(_TOP_K, dim=2).indices
    candidate = torch.zeros_like(metric).scatter_(2, best, 1.0).bool() & inside
    contested = overlap.masked_fill(~candidate, -1.0)
    owner = contested.argmax(dim=1)  # a cell wanted by several goes to the largest overlap
    positive = candidate.any(dim=1)
    mine = F.one_hot(owner, overlap.shape[1]).transpose(1, 2).bool() & candidate
    metric, overlap = metric * mine, overlap * mine
    peak = overlap.amax(dim=2, keepdim=True) / (metric.amax(dim=2, keepdim=True) + _TINY)
    quality = (metric * peak).amax(dim=1)  # [n, a]
    label = targets.labels.gather(1, owner)
    wanted = F.one_hot(label, scores.shape[2]) * (quality * positive)[..., None]
    return _Aligned(wanted, targets.boxes.gather(1, owner[..., None].expand(-1, -1, 4)), positive)


def _inside(centres: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Tell which centres `[a, 2]` lie inside which boxes `[n, g, 4]`: `[n, g, a]`."""
    low = centres > boxes[:, :, None, :2]
    high = centres < boxes[:, :, None, 2:]
    return (low & high).all(dim=-1)


def _iou(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    shared, joint, _ = _areas(a, b)
    return shared / joint


def generalized_iou(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the GIoU, in (-1, 1], of boxes `[..., 4]` (x1 y1 x2 y2) that broadcast together."""
    shared, joint, hull = _areas(a, b)
    return shared / joint - (hull - joint) / hull


def _areas(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the areas of intersection, union and enclosing box."""
    overlap = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(
        0
    )
    outer = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    shared = overlap[..., 0] * overlap[..., 1]
    sizes = [(box[..., 2:] - box[..., :2]).clamp(0).prod(dim=-1) for box in (a, b)]
    hull = outer.clamp(0).prod(dim=-1)
    return shared, (sizes[0] + sizes[1] - shared).clamp(min=_TINY), hull.clamp(min=_TINY)
