"""Overlaps of boxes, pair by pair."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

Box = list[float]


def box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Intersection over union of every pair, [N, M] float64; 0 where the union is."""
    return _table(_iou, boxes1, boxes2)


def generalized_box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Generalized intersection over union of every pair, [N, M] float64."""
    return _table(_generalized, boxes1, boxes2)


def box_coverage(boxes: Tensor, regions: Tensor) -> Tensor:
    """Share of each box that lies in each region, [N, M] float64."""
    return _table(_coverage, boxes, regions)


def paired_box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Intersection over union of box and box, [N] float64."""
    return _list(_iou, boxes1, boxes2)


def paired_generalized_box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Generalized intersection over union of box and box, [N] float64."""
    return _list(_generalized, boxes1, boxes2)


def generalized_box_iou_loss(boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7) -> Tensor:
    """1 - generalized intersection over union of box and box, [N] float64."""

    def loss(a: Box, b: Box) -> float:
        shared, union, around = _areas(a, b)
        return 1 - shared / (union + eps) + (around - union) / (around + eps)

    return _list(loss, boxes1, boxes2)


def _table(measure: Callable[[Box, Box], float], boxes1: Tensor, boxes2: Tensor) -> Tensor:
    rows = [[measure(a, b) for b in boxes2.double().tolist()] for a in boxes1.double().tolist()]
    return torch.tensor(rows, dtype=torch.float64).reshape(len(boxes1), len(boxes2))


def _list(measure: Callable[[Box, Box], float], boxes1: Tensor, boxes2: Tensor) -> Tensor:
    pairs = zip(boxes1.double().tolist(), boxes2.double().tolist(), strict=True)
    return torch.tensor([measure(a, b) for a, b in pairs], dtype=torch.float64)


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _areas(a: Box, b: Box) -> tuple[float, float, float]:
    """Of the intersection, of the union, and of the box around both."""
    if any(map(math.isnan, (*a, *b))):
        return math.nan, math.nan, math.nan
    shared = max(min(a[2], b[2]) - max(a[0], b[0]), 0.0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0.0)
    around = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return shared, _area(a) + _area(b) - shared, around


def _iou(a: Box, b: Box) -> float:
    shared, union, _ = _areas(a, b)
    return 0.0 if union <= 0 else shared / union


def _generalized(a: Box, b: Box) -> float:
    _, union, around = _areas(a, b)
    if max(a[2], b[2]) < min(a[0], b[0]) or max(a[3], b[3]) < min(a[1], b[1]):  # both inverted
        around = 0.0
    return _iou(a, b) - (0.0 if around <= 0 else (around - union) / around)


def _coverage(box: Box, region: Box) -> float:
    shared, _, _ = _areas(box, region)
    return 0.0 if _area(box) <= 0 and not math.isnan(shared) else shared / (_area(box) or 1.0)
