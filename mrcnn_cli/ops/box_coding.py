"""Boxes as deltas to anchors, and back: "Rich feature hierarchies" (Girshick et al., 2014), appendix C."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# exp() of a wild width or height delta overflows; Detectron caps it where a 16 px anchor becomes 1000 px wide.
LOG_MAX_SCALE = math.log(1000.0 / 16)


def encode(boxes: Tensor, anchors: Tensor, weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0)) -> Tensor:
    """Deltas that turn each anchor into its box.

    Args:
        boxes: [..., 4] x1, y1, x2, y2.
        anchors: [..., 4], with positive widths and heights.
        weights: factors on dx, dy, dw, dh; (10, 10, 5, 5) in Fast R-CNN's box head.

    Returns:
        [..., 4] dx, dy, dw, dh.
    """
    size, anchor_size = boxes[..., 2:] - boxes[..., :2], anchors[..., 2:] - anchors[..., :2]
    shift = (boxes[..., :2] + 0.5 * size - anchors[..., :2] - 0.5 * anchor_size) / anchor_size
    return torch.cat([shift, torch.log(size / anchor_size)], -1) * boxes.new_tensor(weights)


def decode(
    deltas: Tensor,
    anchors: Tensor,
    weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
    clamp: float = LOG_MAX_SCALE,
) -> Tensor:
    """Boxes that deltas make of anchors: the inverse of `encode`.

    Args:
        deltas: [..., 4] dx, dy, dw, dh.
        anchors: [..., 4], broadcast against `deltas`.
        weights: as for `encode`.
        clamp: upper limit of dw and dh after division by their weights.

    Returns:
        [..., 4] x1, y1, x2, y2; not clipped to any image.
    """
    deltas = deltas / deltas.new_tensor(weights)
    anchor_size = anchors[..., 2:] - anchors[..., :2]
    center = anchors[..., :2] + 0.5 * anchor_size + deltas[..., :2] * anchor_size
    half = 0.5 * anchor_size * torch.exp(deltas[..., 2:].clamp(max=clamp))
    return torch.cat([center - half, center + half], -1)


def clip_boxes(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes [..., 4] cut to an image of `size` (height, width)."""
    height, width = size
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack([x1.clamp(0, width), y1.clamp(0, height), x2.clamp(0, width), y2.clamp(0, height)], -1)
