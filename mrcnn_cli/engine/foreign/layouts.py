"""Tensors laid out as here: background last, one size of anchors after the other."""

from collections.abc import Callable

import torch
from torch import Tensor

RATIOS = 3  # of the anchors of every published model
RETINANET_ANCHORS = 9  # at each cell, of every published model


def background_last(tensor: Tensor) -> Tensor:
    """Rows per class, of which the first is background's, with background last."""
    return torch.cat([tensor[1:], tensor[:1]])


def without_background(tensor: Tensor) -> Tensor:
    """Rows per class without the first, background's."""
    return tensor[1:]


def boxes_without_background(tensor: Tensor) -> Tensor:
    """Four rows per class without the first four, background's."""
    return tensor[4:]


def size_by_size(values: int = 1) -> Callable[[Tensor], Tensor]:
    """Rows per anchor, `values` each, which are in the order ratio, size, in the order size, ratio."""

    def change(tensor: Tensor) -> Tensor:
        if len(tensor) % (RATIOS * values):  # other ratios than published models have, of which nothing is known
            return tensor
        return tensor.unflatten(0, (RATIOS, -1, values)).transpose(0, 1).flatten(0, 2)

    return change


def retinanet_classes(tensor: Tensor) -> Tensor:
    """Rows per anchor and class, size by size, without the first class: of COCO's numbers, which begin at 1."""
    if len(tensor) % RETINANET_ANCHORS:
        return tensor
    rows = tensor.unflatten(0, (RETINANET_ANCHORS, -1))[:, 1:]
    return size_by_size(rows.shape[1])(rows.flatten(0, 1))


def ssd_classes(boxes: int) -> Callable[[Tensor], Tensor]:
    """Rows per box and class, of which the first is background's, with background last."""

    def change(tensor: Tensor) -> Tensor:
        if tensor.ndim == 0 or len(tensor) % boxes:  # of another design, that of SSDlite
            return tensor
        rows = tensor.unflatten(0, (boxes, -1))
        return torch.cat([rows[:, 1:], rows[:, :1]], 1).flatten(0, 1)

    return change
