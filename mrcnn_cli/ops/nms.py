"""Non-maximum suppression: of boxes that overlap too much, the best one stays."""

import torch
from torch import Tensor


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Indices of the boxes that no better box overlaps by more than a threshold, best first.

    The same indices as torchvision.ops.nms, in the same order. Among equal scores the earlier box counts as better; NaN
    counts as the best score. Half-precision boxes are compared in float32.

    Boxes that overlap nothing stay, whatever lies on them: those with a coordinate that is NaN, without area, of
    negative width or height, or with an area that is not finite. A threshold below zero lets one box stay, and the ones
    of these whose overlap is no number.

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

    Groups are told apart by their number, not by moving boxes out of each other's way, which would cost precision.
    Among equal scores the earlier box counts as better, within its group and in the order that comes out.
    torchvision.ops.batched_nms keeps the same boxes where its shifts round nothing away, but from 1000 boxes on (on the
    CPU) leaves the order of equal scores open.

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
    if groups is not None and groups.dtype != torch.int64:
        groups = groups.long()
    if scores.device != boxes.device:
        raise RuntimeError(f"nms: scores must be on the device of boxes, {boxes.device}, got {scores.device}")
    if boxes.is_cpu:
        return torch.ops.mrcnn.nms_indices(boxes.detach(), scores.detach(), groups, iou_threshold)
    if scores.ndim != 1 or scores.shape[0] != boxes.shape[0]:
        raise RuntimeError(f"nms: scores must be [{boxes.shape[0]}], got {list(scores.shape)}")
    order = scores.detach().sort(descending=True, stable=True).indices
    if groups is not None:
        groups = groups.index_select(0, order)
    return order[nms_sorted(boxes.index_select(0, order), iou_threshold, groups)]


def _described(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


@torch.library.register_fake("mrcnn::nms")
def _nms_shape(boxes: Tensor, groups: Tensor | None, iou_threshold: float) -> Tensor:
    return boxes.new_empty(boxes.shape[0], dtype=torch.bool)


@torch.library.register_fake("mrcnn::nms_indices")
def _nms_indices_shape(boxes: Tensor, scores: Tensor, groups: Tensor | None, iou_threshold: float) -> Tensor:
    count = torch.library.get_ctx().new_dynamic_size(min=0)
    return boxes.new_empty(count, dtype=torch.int64)
