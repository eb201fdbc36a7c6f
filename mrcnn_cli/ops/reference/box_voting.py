"""Box voting, voter by voter."""

import math

import torch
from torch import Tensor

from mrcnn_cli.ops.reference.nms import iou


def box_voting(
    boxes: Tensor,
    scores: Tensor,
    keep: Tensor,
    iou_threshold: float = 0.8,
    method: str = "ID",
    beta: float = 1.0,
    idxs: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """[K, 4] averaged boxes and [K] new scores, float64."""
    corners, all_scores = boxes.double().tolist(), scores.double().tolist()
    groups = [0] * len(all_scores) if idxs is None else idxs.tolist()
    new_boxes, new_scores = [], []
    for k in keep.tolist():
        overlaps = [iou(corners[k], box) for box in corners]
        voters = [i for i, group in enumerate(groups) if group == groups[k] and overlaps[i] >= iou_threshold]
        s, o = [all_scores[i] for i in voters], [overlaps[i] for i in voters]
        if sum(s) > 0:
            sums = [sum(all_scores[i] * corners[i][side] for i in voters) for side in range(4)]
            new_boxes.append([total / sum(s) for total in sums])
        else:
            new_boxes.append(corners[k])
        new_scores.append(_score(method, beta, s, o) if voters and method != "ID" else all_scores[k])
    return torch.tensor(new_boxes, dtype=torch.float64).reshape(-1, 4), torch.tensor(new_scores, dtype=torch.float64)


def _score(method: str, beta: float, scores: list[float], overlaps: list[float]) -> float:
    count = len(scores)
    if method == "TEMP_AVG":
        return sum(_tempered(score, beta) for score in scores) / count
    if method == "AVG":
        return sum(scores) / count
    if method == "IOU_AVG":
        return sum(s * o for s, o in zip(scores, overlaps, strict=True)) / sum(overlaps)
    if method == "GENERALIZED_AVG":
        return (sum(score**beta for score in scores) / count) ** (1 / beta)
    return sum(scores) / count**beta  # QUASI_SUM


def _tempered(score: float, beta: float) -> float:
    """Detectron's steps: log(P / max P) / beta, exponentiated and normalized, for P = [score, 1 - score]."""
    largest = max(score, 1 - score)
    own, other = (math.exp(math.log(p / largest) / beta) if p > 0 else 0.0 for p in (score, 1 - score))
    return own / (own + other)
