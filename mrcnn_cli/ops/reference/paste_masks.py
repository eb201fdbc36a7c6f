"""Masks put into the image, pixel by pixel."""

import math

import torch
from torch import Tensor


def paste_masks_dense(masks: Tensor, boxes: Tensor, image_size: tuple[int, int], threshold: float = 0.5) -> Tensor:
    """Bilinear sampling at every pixel's centre, zero outside of the mask's grid, [N, height, width] bool."""
    height, width = image_size
    images = torch.zeros(len(masks), height, width, dtype=torch.bool)
    for n, (x1, y1, x2, y2) in enumerate(boxes.double().tolist()):
        if not (0 < x2 - x1 < math.inf and 0 < y2 - y1 < math.inf):
            continue
        grid = masks[n].double().tolist()
        size = len(grid)
        for row in range(height):
            v = (row + 0.5 - y1) / (y2 - y1) * size - 0.5
            for column in range(width):
                u = (column + 0.5 - x1) / (x2 - x1) * size - 0.5
                if -1 <= v < size and -1 <= u < size:
                    images[n, row, column] = _bilinear(grid, v, u) >= threshold
    return images


def _bilinear(grid: list[list[float]], v: float, u: float) -> float:
    value = 0.0
    for i in (math.floor(v), math.floor(v) + 1):
        for j in (math.floor(u), math.floor(u) + 1):
            if 0 <= i < len(grid) and 0 <= j < len(grid):
                value += (1 - abs(v - i)) * (1 - abs(u - j)) * grid[i][j]
    return value
