"""Objects' masks cut to regions: lines drawn pixel by pixel, masks decoded in full and sampled point by point."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mrcnn_cli.ops.run_lengths import run_lengths

Point = tuple[float, float]


def mask_targets(
    polygons_or_rles: Sequence[Any],
    boxes: Tensor,
    size: int,
    *,
    matrix: Tensor | None = None,
    sampling_ratio: int = 0,
    aligned: bool = True,
    threshold: float | None = 0.5,
) -> Tensor:
    """Each object's mask within its box, [N, size, size] float64."""
    affine = np.eye(3)
    if matrix is not None:
        affine[:2] = matrix.double().cpu().numpy()
    targets = torch.zeros(len(boxes), size, size, dtype=torch.float64)
    for target, segmentation, box in zip(targets, polygons_or_rles, boxes.double().tolist(), strict=True):
        if not all(map(math.isfinite, box)):
            continue
        if isinstance(segmentation, dict):
            means = _sampled(segmentation, box, size, np.linalg.inv(affine), sampling_ratio, aligned)
            # as the kernels do: the mean is rounded to float32 once, which evens out the order of its sum
            means = means.float()
            target[:] = means if threshold is None else means >= torch.tensor(threshold)
        else:
            for polygon in segmentation:
                target += _filled(_on_grid(polygon, box, size, affine), size)
            target[:] = target > 0
    return targets


def _on_grid(polygon: Sequence[float], box: list[float], size: int, affine: np.ndarray) -> list[Point]:
    points = []
    for x, y in zip(polygon[::2], polygon[1::2], strict=True):
        u = affine[0, 0] * x + affine[0, 1] * y + affine[0, 2]
        v = affine[1, 0] * x + affine[1, 1] * y + affine[1, 2]
        points.append(
            (
                (u - box[0]) * (size / max(box[2] - box[0], 0.1)),
                (v - box[1]) * (size / max(box[3] - box[1], 0.1)),
            )
        )
    return points


def _filled(points: list[Point], size: int) -> Tensor:
    """By COCO's rule: the outline is drawn five times as fine, and where it steps over the middle of a column, the
    column's pixels from there down change sides."""
    corners = [(int(5 * x + 0.5), int(5 * y + 0.5)) for x, y in points]
    filled = torch.zeros(size, size, dtype=torch.bool)
    for start, end in zip(corners, [*corners[1:], corners[0]], strict=True):
        line = _line(start, end)
        for (x, y), (next_x, next_y) in zip(line, line[1:], strict=False):
            if x == next_x:
                continue
            column, rest = divmod(min(x, next_x) - 2, 5)
            if rest == 0 and 0 <= column < size:
                top = (min(y, next_y) + 0.5) / 5 - 0.5
                filled[math.ceil(min(max(top, 0), size)) :, column] ^= True
    return filled


def _line(start: tuple[int, int], end: tuple[int, int]) -> list[tuple[int, int]]:
    """Pixels from one to another, one for each step along the longer axis."""
    wide = abs(end[0] - start[0]) >= abs(end[1] - start[1])
    axis = 0 if wide else 1
    if start[axis] > end[axis]:
        start, end = end, start
    steps = end[axis] - start[axis]
    if steps == 0:
        return [start]
    slope = (end[1 - axis] - start[1 - axis]) / steps
    line = [(start[axis] + t, int(start[1 - axis] + slope * t + 0.5)) for t in range(steps + 1)]
    return line if wide else [(x, y) for y, x in line]


def _sampled(
    encoding: dict[str, Any], box: list[float], size: int, inverse: np.ndarray, sampling_ratio: int, aligned: bool
) -> Tensor:
    """RoIAlign of the decoded mask at points that the inverse matrix moves to it."""
    height, width = encoding["size"]
    runs = run_lengths(encoding)
    mask = np.repeat(np.arange(len(runs)) % 2, runs).reshape(width, height).T
    means = torch.zeros(size, size, dtype=torch.float64)
    if not mask.size:
        return means
    shift = 0.5 if aligned else 0.0
    xs, ys = (_points(box[axis], box[axis + 2], size, sampling_ratio, aligned) for axis in (0, 1))
    for row in range(size):
        for column in range(size):
            values = [
                _bilinear(mask, *(inverse[:2] @ [x + shift, y + shift, 1.0] - shift))
                for y in ys[row]
                for x in xs[column]
            ]
            means[row, column] = sum(values) / max(len(values), 1)
    return means


def _points(low: float, high: float, bins: int, ratio: int, aligned: bool) -> list[list[float]]:
    extent = high - low if aligned else max(high - low, 1.0)
    count = ratio if ratio > 0 else max(math.ceil(extent / bins), 0)
    start = low - (0.5 if aligned else 0.0)
    return [[start + (bin + (i + 0.5) / count) * extent / bins for i in range(count)] for bin in range(bins)]


def _bilinear(mask: np.ndarray, x: float, y: float) -> float:
    height, width = mask.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return 0.0
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    upper = (left + 1 - x) * mask[top, left] + (x - left) * mask[top, right]
    lower = (left + 1 - x) * mask[bottom, left] + (x - left) * mask[bottom, right]
    return float((top + 1 - y) * upper + (y - top) * lower)
