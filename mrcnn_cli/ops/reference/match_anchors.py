"""Matching of anchors by the table of all their overlaps."""

import math

import torch
from torch import Tensor

CROWD_COVERAGE = 0.7


def match_anchors(
    anchors: Tensor,
    boxes: Tensor,
    low: float,
    high: float,
    allow_low_quality: bool = False,
    ignore: Tensor | None = None,
) -> Tensor:
    """For each anchor the object it is matched to, -1 background, -2 ignored; [A] int64."""
    rows = anchors.double().tolist()
    objects = {g: box for g, box in enumerate(boxes.double().tolist()) if not math.isnan(_area(box))}
    matched = [-1] * len(rows)
    if objects:
        table = [{g: _iou(anchor, box) for g, box in objects.items()} for anchor in rows]
        best = [max(row, key=row.__getitem__) for row in table]  # the first of equals
        for a, row in enumerate(table):
            overlap = row[best[a]]
            matched[a] = best[a] if overlap >= high else -1 if overlap < low else -2
        if allow_low_quality and rows:
            for g in objects:
                top = max(row[g] for row in table)
                for a, row in enumerate(table):
                    if row[g] == top:
                        matched[a] = best[a]
    for crowd in ignore.double().tolist() if ignore is not None else []:
        for a, anchor in enumerate(rows):
            if matched[a] == -1 and _area(anchor) > 0 and _shared(anchor, crowd) / _area(anchor) >= CROWD_COVERAGE:
                matched[a] = -2
    return torch.tensor(matched, dtype=torch.int64)


def _area(box: list[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _shared(a: list[float], b: list[float]) -> float:
    if any(map(math.isnan, (*a, *b))):
        return 0.0
    return max(min(a[2], b[2]) - max(a[0], b[0]), 0.0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0.0)


def _iou(a: list[float], b: list[float]) -> float:
    shared = _shared(a, b)
    iou = shared / (_area(a) + _area(b) - shared) if shared > 0 else 0.0
    return 0.0 if math.isnan(iou) else iou  # of infinite boxes
