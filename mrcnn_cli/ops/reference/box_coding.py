"""Box coding, number by number."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def encode(boxes: Tensor, anchors: Tensor, weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0)) -> Tensor:
    """Deltas of boxes [N, 4] to their anchors [N, 4], float64."""
    rows = []
    for (x1, y1, x2, y2), (a1, b1, a2, b2) in zip(boxes.tolist(), anchors.tolist(), strict=True):
        width, height = a2 - a1, b2 - b1
        shift = ((x1 + x2 - a1 - a2) / 2 / width, (y1 + y2 - b1 - b2) / 2 / height)
        scale = (math.log((x2 - x1) / width), math.log((y2 - y1) / height))
        rows.append([value * weight for value, weight in zip((*shift, *scale), weights, strict=True)])
    return torch.tensor(rows, dtype=torch.float64)


def decode(deltas: Tensor, anchors: Tensor, weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0)) -> Tensor:
    """Boxes of deltas [N, 4] to anchors [N, 4], float64; sizes are not limited."""
    rows = []
    for row, (a1, b1, a2, b2) in zip(deltas.tolist(), anchors.tolist(), strict=True):
        dx, dy, dw, dh = (value / weight for value, weight in zip(row, weights, strict=True))
        width, height = a2 - a1, b2 - b1
        x, y = (a1 + a2) / 2 + dx * width, (b1 + b2) / 2 + dy * height
        half_width, half_height = width * math.exp(dw) / 2, height * math.exp(dh) / 2
        rows.append([x - half_width, y - half_height, x + half_width, y + half_height])
    return torch.tensor(rows, dtype=torch.float64)


def clip_boxes(boxes: Tensor, size: tuple[float, float]) -> Tensor:
    """Boxes [N, 4] cut to an image of `size` (height, width), float64."""
    limits = (size[1], size[0], size[1], size[0])
    rows = [[min(max(value, 0.0), limit) for value, limit in zip(row, limits, strict=True)] for row in boxes.tolist()]
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, 4)
