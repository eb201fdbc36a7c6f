"""Non-maximum suppression: of boxes that overlap too much, the best one stays."""

import torch
from torch import Tensor


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Indices of the boxes that no better box overlaps by more than a threshold, best first.

    The same indices as torchvision.ops.nms. Among equal scores the earlier box counts as better; NaN counts as the best
    score. A box with a NaN coordinate overlaps nothing, so it stays. Half-precision boxes are compared in float32.

    Args:
        boxes: [N, 4] x1, y1, x2, y2.
        scores: [N].
        iou_threshold: intersection over union above which the worse of two boxes goes.

    Returns:
        [K] int64.

    Raises:
        RuntimeError: a shape or type does not fit.
    """
    return _kept(boxes, scores, None, iou_threshold)


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """Indices of the boxes that no better box of the same group overlaps by more than a threshold, best first.

    Groups are told apart by their number, not by moving boxes out of each other's way, which would cost
    precision.

    Args:
        boxes: [N, 4] x1, y1, x2, y2.
        scores: [N].
        idxs: [N] whole numbers; boxes of different numbers (classes, images, levels) never touch each other.
        iou_threshold: intersection over union above which the worse of two boxes goes.

    Returns:
        [K] int64, over all groups.

    Raises:
        RuntimeError: a shape or type does not fit.
    """
    if idxs.shape != scores.shape or idxs.is_floating_point():
        raise RuntimeError(f"batched_nms: idxs must be {list(scores.shape)} whole numbers, got {_described(idxs)}")
    return _kept(boxes, scores, idxs, iou_threshold)


def nms_sorted(boxes: Tensor, iou_threshold: float, groups: Tensor | None = None) -> Tensor:
    """Which boxes stay, for boxes that are sorted already. The shape out follows from the shape in.

    This is the form for torch.compile and CUDA graphs: nothing is read back from the device.

    Args:
        boxes: [N, 4] x1, y1, x2, y2, best first.
        iou_threshold: intersection over union above which the later of two boxes goes.
        groups: [N] int64; boxes of different groups never touch each other. None: one group.

    Returns:
        [N] bool.

    Raises:
        RuntimeError: a shape or type does not fit.
    """
    return torch.ops.mrcnn.nms(boxes.detach(), groups, iou_threshold)


def _kept(boxes: Tensor, scores: Tensor, groups: Tensor | None, iou_threshold: float) -> Tensor:
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise RuntimeError(f"nms: boxes must be [N, 4], got {list(boxes.shape)}")
    if scores.ndim != 1 or scores.shape[0] != boxes.shape[0]:
        raise RuntimeError(f"nms: scores must be [{boxes.shape[0]}], got {list(scores.shape)}")
    order = scores.detach().sort(descending=True, stable=True).indices
    # index_select, not [order]: that one wakes up the other threads for a few boxes already
    if groups is not None:
        groups = groups.index_select(0, order).long()
    return order[nms_sorted(boxes.index_select(0, order), iou_threshold, groups)]


def _described(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


@torch.library.register_fake("mrcnn::nms")
def _nms_shape(boxes: Tensor, groups: Tensor | None, iou_threshold: float) -> Tensor:
    return boxes.new_empty(boxes.shape[0], dtype=torch.bool)
