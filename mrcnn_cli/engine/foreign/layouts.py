"""Tensors laid out as here: background last, one size of anchors after the other."""

import torch
from torch import Tensor

RATIOS = 3  # of the anchors of every published model


def background_last(tensor: Tensor) -> Tensor:
    """Rows per class, of which the first is background's, with background last."""
    return torch.cat([tensor[1:], tensor[:1]])


def without_background(tensor: Tensor) -> Tensor:
    """Rows per class without the first, background's."""
    return tensor[1:]


def boxes_without_background(tensor: Tensor) -> Tensor:
    """Four rows per class without the first four, background's."""
    return tensor[4:]


def sizes_before_ratios(tensor: Tensor) -> Tensor:
    """One row per anchor, sizes slower than ratios, of rows with ratios slower than sizes."""
    return _regrouped(tensor, 1)


def box_sizes_before_ratios(tensor: Tensor) -> Tensor:
    """As `sizes_before_ratios`, with four rows per anchor."""
    return _regrouped(tensor, 4)


def _regrouped(tensor: Tensor, rows: int) -> Tensor:
    sizes = len(tensor) // (RATIOS * rows)
    if RATIOS * sizes * rows != len(tensor):  # other anchors than published models have: their order is not known
        return tensor
    return tensor.unflatten(0, (RATIOS, sizes, rows)).transpose(0, 1).flatten(0, 2)
