"""Overlap of boxes."""

import torch
from torch import Tensor


def box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Intersection over union of every pair of boxes.

    Args:
        boxes1: [N, 4] x1, y1, x2, y2.
        boxes2: [M, 4].

    Returns:
        [N, M]; 0 where both boxes are empty.
    """
    intersection = _intersection(boxes1, boxes2)
    union = _area(boxes1)[:, None] + _area(boxes2) - intersection
    return torch.where(union > 0, intersection / union, torch.zeros_like(union))


def box_coverage(boxes: Tensor, regions: Tensor) -> Tensor:
    """Share of each box that lies in each region: intersection over the box's own area, [N, M]."""
    area = _area(boxes)[:, None]
    return torch.where(area > 0, _intersection(boxes, regions) / area, torch.zeros_like(area))


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _intersection(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    low = torch.maximum(boxes1[:, None, :2], boxes2[:, :2])
    high = torch.minimum(boxes1[:, None, 2:], boxes2[:, 2:])
    width, height = (high - low).clamp(min=0).unbind(-1)
    return width * height
