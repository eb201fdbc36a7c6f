"""RoIAlign, sample by sample."""

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
