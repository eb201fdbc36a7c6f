"""What the kernels are timed on: boxes as detectors meet them, and feature pyramids."""

import math

import torch
from torch import Tensor

from mrcnn_cli.ops import grid_anchors

# Maps P2-P5 of an image of 800 x 1344 pixels.
IMAGE = (800, 1344)
STRIDES = (4, 8, 16, 32)
SCALES = tuple(1 / stride for stride in STRIDES)


def pyramid(channels: int, device: torch.device, images: int = 1, seed: int = 1) -> list[Tensor]:
    """Maps [N, C, H_l, W_l] of all STRIDES, standard normal, contiguous float32."""
    random = torch.Generator().manual_seed(seed)
    sizes = [(IMAGE[0] // stride, IMAGE[1] // stride) for stride in STRIDES]
    return [torch.randn(images, channels, *size, generator=random).to(device) for size in sizes]


def spread_boxes(
    count: int, size: tuple[int, int] = IMAGE, low: float = 16, high: float = 600, seed: int = 0
) -> Tensor:
    """Boxes [N, 4] all over an image; the roots of their areas spread evenly in their logarithm, sides 1:2 to 2:1."""
    random = torch.Generator().manual_seed(seed)
    side = torch.exp(torch.rand(count, generator=random) * math.log(high / low)) * low
    aspect = torch.exp((torch.rand(count, generator=random) - 0.5) * math.log(4.0)).sqrt()
    limits = torch.tensor([float(size[1]), float(size[0])])
    return _inside(
        torch.rand(count, 2, generator=random) * limits, torch.stack([side * aspect, side / aspect], 1), limits
    )


def clustered_boxes(
    count: int, size: tuple[int, int] = IMAGE, low: float = 16, high: float = 600, seed: int = 0
) -> Tensor:
    """Boxes [N, 4] as a region proposal network gives them: twenty around each of many objects."""
    random = torch.Generator().manual_seed(seed)
    objects = spread_boxes(max(count // 20, 1), size, low, high, seed + 1)
    chosen = objects[torch.randint(len(objects), (count,), generator=random)]
    sides = chosen[:, 2:] - chosen[:, :2]
    center = (chosen[:, :2] + chosen[:, 2:]) / 2 + torch.randn(count, 2, generator=random) * sides * 0.1
    limits = torch.tensor([float(size[1]), float(size[0])])
    return _inside(center, sides * torch.exp(torch.randn(count, 2, generator=random) * 0.15), limits)


def _inside(center: Tensor, sides: Tensor, limits: Tensor) -> Tensor:
    """Boxes cut to the image, none of them narrower than a pixel."""
    low = torch.minimum((center - sides / 2).clamp(min=0), limits - 1)
    return torch.cat([low, torch.maximum(torch.minimum(center + sides / 2, limits), low + 1)], 1)


def some_scores(count: int, seed: int = 5) -> Tensor:
    """Scores [N] in 0..1, no two of them equal."""
    ranks = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return (ranks.float() + 0.5) / max(count, 1)


def pyramid_anchors(size: tuple[int, int] = (800, 1088)) -> Tensor:
    """The anchors [A, 4] of levels P2-P6 of an image, three per cell: 217 413 of them for 800 x 1088 pixels."""
    levels = [(32.0 * 2**level, 4 * 2**level) for level in range(5)]
    return torch.cat(
        [
            grid_anchors((side,), (0.5, 1.0, 2.0), (-(-size[0] // stride), -(-size[1] // stride)), stride)
            for side, stride in levels
        ]
    )


def few_rois() -> Tensor:
    """Regions [4, 5] of two small maps: inside, across a corner, beyond the far border, smaller than a pixel."""
    return torch.tensor(
        [[0, 1.3, 2.1, 30.7, 22.9], [1, -6.0, -4.0, 14.0, 9.0], [1, 20.0, 20.0, 90.0, 70.0], [0, 7.0, 7.0, 7.5, 7.2]]
    )


def boxes_type(values: Tensor) -> torch.dtype:
    """Boxes beside half-precision features stay float32."""
    return torch.float64 if values.dtype == torch.float64 else torch.float32
