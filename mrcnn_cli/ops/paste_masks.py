"""Masks of a fixed resolution put back into the image: "Mask R-CNN" (He et al., 2017), section 3.1."""

from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

Window = tuple[int, int, Tensor]  # top, left, bool [h, w]


def paste_masks(
    masks: Tensor, boxes: Tensor, image_size: tuple[int, int], threshold: float = 0.5
) -> list[dict[str, Any]]:
    """Run-length encodings of masks resampled from their boxes into the image.

    Bilinear sampling at pixel centres, zero outside of the mask's grid, as in Detectron2. The full image is never made:
    the memory needed is that of the largest box.

    Args:
        masks: [N, M, M] probabilities.
        boxes: [N, 4] in pixels of the image.
        image_size: (height, width).
        threshold: a pixel belongs to the mask from this probability on.

    Returns:
        Per mask a compressed COCO encoding {"size": [height, width], "counts": bytes}.
    """
    _check(masks, boxes)
    height, width = image_size
    encodings = [_encode(window, height, width) for window in _windows(masks, boxes, image_size, threshold)]
    return coco_mask.frPyObjects(encodings, height, width) if encodings else []


def paste_masks_dense(masks: Tensor, boxes: Tensor, image_size: tuple[int, int], threshold: float = 0.5) -> Tensor:
    """As `paste_masks`, but whole images: [N, height, width] bool on the device of `masks`."""
    _check(masks, boxes)
    pasted = torch.zeros((len(masks), *image_size), dtype=torch.bool)
    for image, (top, left, inside) in zip(pasted, _windows(masks, boxes, image_size, threshold), strict=True):
        image[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    return pasted.to(masks.device)


def _check(masks: Tensor, boxes: Tensor) -> None:
    if masks.dim() != 3 or masks.shape[1] != masks.shape[2]:
        raise ValueError(f"paste_masks: masks must be [N, M, M], got {list(masks.shape)}")
    if boxes.shape != (len(masks), 4):
        raise ValueError(f"paste_masks: boxes must be [{len(masks)}, 4] as there are masks, got {list(boxes.shape)}")


def _windows(masks: Tensor, boxes: Tensor, image_size: tuple[int, int], threshold: float) -> list[Window]:
    """Per mask the part of the image that it can reach."""
    masks, boxes = masks.detach().float().cpu(), boxes.detach().double().cpu()
    windows = []
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.tolist(), strict=True):
        top, rows = _axis(y1, y2, mask.shape[0], image_size[0])
        left, columns = _axis(x1, x2, mask.shape[1], image_size[1])
        windows.append((top, left, rows @ mask @ columns.T >= threshold))
    return windows


def _axis(start: float, end: float, bins: int, length: int) -> tuple[int, Tensor]:
    """First pixel and [pixels, bins] bilinear weights of one axis: bilinear sampling is separable."""
    extent = end - start
    if not 0 < extent < float("inf"):  # empty, inverted or not finite: no pixels
        return 0, torch.zeros((0, bins))
    reach = 0.5 * extent / bins  # half a cell beyond the box the weights have faded to zero
    first = min(max(int(np.floor(start - reach - 0.5)), 0), length)
    last = min(max(int(np.ceil(end + reach + 0.5)), first), length)
    position = (torch.arange(first, last, dtype=torch.float64) + 0.5 - start) / extent * bins - 0.5
    weights = (1 - (position[:, None] - torch.arange(bins, dtype=torch.float64)).abs()).clamp(min=0)
    return first, weights.float()


def _encode(window: Window, height: int, width: int) -> dict[str, Any]:
    """Plain run lengths, in COCO's column order, of a mask that is empty outside of its window."""
    top, left, inside = window
    columns = np.ascontiguousarray(inside.numpy().T)
    edged = np.zeros((columns.shape[0], columns.shape[1] + 2), dtype=np.int8)
    edged[:, 1:-1] = columns
    column, row = np.nonzero(np.diff(edged, axis=1))  # starts and ends of the runs, alternating
    edges = (left + column).astype(np.int64) * height + top + row
    # A run that ends at the bottom of one column and goes on at the top of the next is one run.
    if len(edges) > 2:
        joined = np.flatnonzero(edges[1:-1:2] == edges[2::2])
        edges = np.delete(edges, np.concatenate([2 * joined + 1, 2 * joined + 2]))
    counts = np.diff(np.concatenate([[0], edges, [height * width]]))
    if len(edges) and edges[-1] == height * width:
        counts = counts[:-1]
    return {"size": [height, width], "counts": counts.tolist()}
