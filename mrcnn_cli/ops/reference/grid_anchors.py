"""Anchors, corner by corner."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


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
