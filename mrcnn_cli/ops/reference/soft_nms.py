"""Soft-NMS, pick by pick."""

import math

import torch
from torch import Tensor

from mrcnn_cli.ops.reference.nms import iou


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float = 0.3,
    method: str = "linear",
    sigma: float = 0.5,
    score_threshold: float = 0.001,
    idxs: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Indices in the order of the picks and their scores, float64."""
    lowered = soft_nms_scores(boxes, scores, iou_threshold, method, sigma, score_threshold, idxs)
    picked = [i for i, score in enumerate(lowered.tolist()) if score > 0]
    picked.sort(key=lambda i: -lowered[i].item())
    return torch.tensor(picked, dtype=torch.int64), lowered[picked]


def soft_nms_scores(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float = 0.3,
    method: str = "linear",
    sigma: float = 0.5,
    score_threshold: float = 0.001,
    idxs: Tensor | None = None,
) -> Tensor:
    """What is left of each score, float64, 0 for boxes that are dropped."""
    corners, left = boxes.double().tolist(), scores.double().tolist()
    groups = [0] * len(left) if idxs is None else idxs.tolist()
    result = [0.0] * len(left)
    rest = list(range(len(left)))
    while True:
        rest = [i for i in rest if left[i] > 0 and left[i] >= score_threshold]
        if not rest:
            return torch.tensor(result, dtype=torch.float64)
        best = max(rest, key=lambda i: left[i])  # the first of equal ones
        result[best] = left[best]
        rest.remove(best)
        for i in rest:
            if groups[i] == groups[best]:
                left[i] *= _factor(iou(corners[best], corners[i]), iou_threshold, method, sigma)


def _factor(overlap: float, iou_threshold: float, method: str, sigma: float) -> float:
    if method == "gaussian":
        return math.exp(-(overlap**2) / sigma) if overlap > 0 else 1.0
    if not overlap > iou_threshold:
        return 1.0
    return 1.0 - overlap if method == "linear" else 0.0
