"""Non-maximum suppression, pair by pair."""

import math

import torch
from torch import Tensor


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Indices of the boxes that no better one overlaps too much, best first."""
    return batched_nms(boxes, scores, torch.zeros(len(scores), dtype=torch.int64), iou_threshold)


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """Indices of the boxes that no better one of their group overlaps too much, best first."""
    corners, groups = boxes.double().tolist(), idxs.tolist()
    kept: list[int] = []
    for i in scores.sort(descending=True, stable=True).indices.tolist():
        rivals = (k for k in kept if groups[k] == groups[i])
        if not any(iou(corners[k], corners[i]) > iou_threshold for k in rivals):
            kept.append(i)
    return torch.tensor(kept, dtype=torch.int64)


def iou(a: list[float], b: list[float]) -> float:
    """Intersection over union; NaN where there is none."""
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0.0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0.0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union if union != 0 else math.nan  # NaN is above no threshold
