"""The operators again, as slow loops in float64 that anyone can check by eye: what the kernels must agree with.

`mrcnn gradcheck` and the tests compare with these. They take the arguments of the functions they mirror, but boxes of
RoIAlign always as [R, 5].
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def roi_align(
    input: Tensor,
    boxes: Tensor,
    output_size: tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> Tensor:
    """RoIAlign, sample by sample, [R, C, height, width] float64; differentiable in `input`."""
    return multilevel_roi_align([input], boxes, output_size, [spatial_scale], sampling_ratio, aligned)


def multilevel_roi_align(
    features: Sequence[Tensor],
    boxes: Tensor,
    output_size: tuple[int, int],
    spatial_scales: Sequence[float],
    sampling_ratio: int = -1,
    aligned: bool = False,
    canonical_size: float = 224,
    canonical_level: int = 4,
) -> Tensor:
    """RoIAlign from the level that fits each box, [R, C, height, width] float64; differentiable in `features`."""
    maps = [map.double() for map in features]
    height, width = output_size
    pooled = []
    for image, *box in boxes.double().tolist():
        level = _level(box, spatial_scales, canonical_size, canonical_level)
        map = maps[level][int(image)]
        rows = _samples(box[1], box[3], spatial_scales[level], height, sampling_ratio, aligned)
        columns = _samples(box[0], box[2], spatial_scales[level], width, sampling_ratio, aligned)
        bins = [_mean(map, ys, xs) for ys in rows for xs in columns]
        pooled.append(torch.stack(bins, 1).reshape(-1, height, width))
    return torch.stack(pooled) if pooled else maps[0].new_zeros((0, maps[0].shape[1], height, width))


def _level(box: list[float], scales: Sequence[float], canonical_size: float, canonical_level: int) -> int:
    area = (box[2] - box[0]) * (box[3] - box[1])
    if not area > 0:
        return 0
    if math.isinf(area):
        return len(scales) - 1
    level = math.floor(canonical_level + math.log2(math.sqrt(area) / canonical_size) + 1e-6)
    first = round(-math.log2(scales[0]))
    return min(max(level - first, 0), len(scales) - 1)


def _samples(low: float, high: float, scale: float, bins: int, ratio: int, aligned: bool) -> list[list[float]]:
    """Where each bin of one axis is sampled, in pixels of the feature map."""
    shift = 0.5 if aligned else 0.0
    start, extent = low * scale - shift, (high - low) * scale
    if not math.isfinite(start) or not math.isfinite(extent):
        return [[] for _ in range(bins)]
    if not aligned:
        extent = max(extent, 1.0)
    size = extent / bins
    count = ratio if ratio > 0 else max(math.ceil(size), 0)
    return [[start + size * (bin + (i + 0.5) / count) for i in range(count)] for bin in range(bins)]


def _mean(map: Tensor, ys: list[float], xs: list[float]) -> Tensor:
    total = map.new_zeros(map.shape[0])
    for y in ys:
        for x in xs:
            total = total + _bilinear(map, y, x)
    return total / max(len(ys) * len(xs), 1)


def _bilinear(map: Tensor, y: float, x: float) -> Tensor:
    height, width = map.shape[-2:]
    if not (-1 <= y <= height and -1 <= x <= width):
        return map.new_zeros(map.shape[0])
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    down, across = y - top, x - left
    upper = (1 - across) * map[:, top, left] + across * map[:, top, right]
    lower = (1 - across) * map[:, bottom, left] + across * map[:, bottom, right]
    return (1 - down) * upper + down * lower


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Indices of the boxes that no better one overlaps too much, best first."""
    return batched_nms(boxes, scores, torch.zeros(len(scores), dtype=torch.int64), iou_threshold)


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """Indices of the boxes that no better one of their group overlaps too much, best first."""
    corners, groups = boxes.double().tolist(), idxs.tolist()
    kept: list[int] = []
    for i in scores.sort(descending=True, stable=True).indices.tolist():
        rivals = (k for k in kept if groups[k] == groups[i])
        if not any(_iou(corners[k], corners[i]) > iou_threshold for k in rivals):
            kept.append(i)
    return torch.tensor(kept, dtype=torch.int64)


def _iou(a: list[float], b: list[float]) -> float:
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0.0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0.0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union if union != 0 else math.nan  # NaN is above no threshold


def grid_anchors(
    sizes: Sequence[float],
    ratios: Sequence[float],
    grid: tuple[int, int],
    stride: float | tuple[float, float],
    *,
    rounded: bool = False,
    offset: float = 0.0,
) -> Tensor:
    """Anchors of every cell, [H * W * A, 4] float64."""
    stride_y, stride_x = stride if isinstance(stride, tuple) else (stride, stride)
    anchors = []
    for y in range(grid[0]):
        for x in range(grid[1]):
            for size in sizes:
                for ratio in ratios:
                    width = math.sqrt(size * size / ratio)
                    corners = [-width / 2, -width * ratio / 2, width / 2, width * ratio / 2]
                    if rounded:
                        corners = [float(round(corner)) for corner in corners]
                    center = [(x + offset) * stride_x, (y + offset) * stride_y] * 2
                    anchors.append([c + corner for c, corner in zip(center, corners, strict=True)])
    return torch.tensor(anchors, dtype=torch.float64).reshape(-1, 4)
