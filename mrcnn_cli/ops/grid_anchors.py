"""Anchors on a grid: "Faster R-CNN" (Ren et al., 2015), section 3.1.1."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def grid_anchors(
    sizes: Sequence[float],
    ratios: Sequence[float],
    grid: tuple[int, int],
    stride: int | float | tuple[float, float],
    *,
    rounded: bool = False,
    offset: float = 0.0,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Anchors of every cell of a feature map.

    An anchor of size s and ratio r (height / width) has the area s * s, so its width is sqrt(s * s / r). It is centred
    on (x * stride, y * stride) and not clipped to any image.

    Args:
        sizes: square roots of the anchors' areas, in pixels of the image.
        ratios: height / width.
        grid: (height, width) of the feature map, in cells.
        stride: pixels from cell to cell, or (vertical, horizontal).
        rounded: round the corners of the base anchors (those of cell 0, 0) to whole pixels, as torchvision does.
        offset: of the centres, in strides; 0.5 puts them in the middle of the cells.
        device: where the anchors go.
        dtype: float32 or float64.

    Returns:
        [H * W * A, 4] x1, y1, x2, y2 in the order y, x, size, ratio.

    Raises:
        RuntimeError: a value does not fit.
    """
    corners = base_corners(sizes, ratios, rounded, "grid_anchors")
    stride_y, stride_x = both_strides(stride)
    like = torch.empty(0, device=device, dtype=dtype)
    return torch.ops.mrcnn.grid_anchors(like, corners, grid[0], grid[1], stride_y, stride_x, offset)


def base_corners(sizes: Sequence[float], ratios: Sequence[float], rounded: bool, op: str) -> list[float]:
    """Corners x1, y1, x2, y2 of the anchors of cell 0, 0, one after another, sizes slower than ratios.

    RuntimeError in the name of `op` where a size or ratio is not positive.
    """
    if any(not value > 0 for value in (*sizes, *ratios)):
        raise RuntimeError(f"{op}: sizes and ratios must be positive, got {list(sizes)} and {list(ratios)}")
    corners = []
    for size in sizes:
        for ratio in ratios:
            width = math.sqrt(size * size / ratio)
            corner = [-width / 2, -width * ratio / 2, width / 2, width * ratio / 2]
            corners += [float(round(value)) for value in corner] if rounded else corner
    return corners


def both_strides(stride: int | float | Sequence[float]) -> tuple[float, float]:
    """(vertical, horizontal) of a stride that may be one number for both."""
    vertical, horizontal = stride if isinstance(stride, tuple | list) else (stride, stride)
    return float(vertical), float(horizontal)


@torch.library.register_fake("mrcnn::grid_anchors")
def _grid_anchors_shape(
    like: Tensor, base_anchors: list[float], height: int, width: int, stride_y: float, stride_x: float, offset: float
) -> Tensor:
    return like.new_empty((height * width * (len(base_anchors) // 4), 4))
