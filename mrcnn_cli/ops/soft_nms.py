"""Soft-NMS: "Improving Object Detection With One Line of Code" (Bodla et al., 2017)."""

import torch
from torch import Tensor

METHODS = {"hard": 0, "linear": 1, "gaussian": 2}


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float = 0.3,
    method: str = "linear",
    sigma: float = 0.5,
    score_threshold: float = 0.001,
    idxs: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Boxes in the order in which they are picked, and their scores, lowered by the picks before that overlap them.

    Again and again the box with the highest score is picked, and the others that overlap it are multiplied by
    1 - overlap (linear), exp(-overlap^2 / sigma) (gaussian) or 0 (hard, which is `nms`).

    Among equal scores the earlier box is picked first. A box whose score is below score_threshold, zero or NaN is
    dropped; so is one that a pick brings there. Boxes that overlap nothing - NaN, no area - keep their score. The same
    bits on every device and for any number of threads. Nothing is differentiated.

    Args:
        boxes: [N, 4] x1, y1, x2, y2.
        scores: [N], from 0.
        iou_threshold: intersection over union above which scores are lowered; gaussian lowers all that overlap.
        method: "linear", "gaussian" or "hard".
        sigma: of the gaussian; the smaller, the more is lost.
        score_threshold: from 0.
        idxs: [N] whole numbers; boxes of different numbers (classes, images) never touch each other. None: one group.

    Returns:
        [K] int64 indices, best first over all groups, and [K] their scores in the type of `scores`.

    Raises:
        RuntimeError: a shape, type or value does not fit.
    """
    # Scores fall from pick to pick, and of equal ones the earlier box is picked first: a stable sort gives the picks.
    lowered = soft_nms_scores(boxes, scores, iou_threshold, method, sigma, score_threshold, idxs)
    kept = lowered.nonzero().flatten()
    lowered, order = lowered.index_select(0, kept).sort(descending=True, stable=True)
    return kept.index_select(0, order), lowered


def soft_nms_scores(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float = 0.3,
    method: str = "linear",
    sigma: float = 0.5,
    score_threshold: float = 0.001,
    idxs: Tensor | None = None,
) -> Tensor:
    """The scores that `soft_nms` leaves, for each box in its place, 0 where it is dropped.

    The shape out follows from the shape in: this is the form for torch.compile and CUDA graphs.

    Args:
        boxes, scores, iou_threshold, method, sigma, score_threshold, idxs: as for `soft_nms`.

    Returns:
        [N] in the type of `scores`.

    Raises:
        RuntimeError: as for `soft_nms`.
    """
    if method not in METHODS:
        raise RuntimeError(f"soft_nms: method must be one of {', '.join(METHODS)}, got {method!r}")
    if scores.device != boxes.device:
        raise RuntimeError(f"soft_nms: scores must be on the device of boxes, {boxes.device}, got {scores.device}")
    if idxs is not None:
        if idxs.is_floating_point():
            raise RuntimeError(f"soft_nms: idxs must be whole numbers, got {str(idxs.dtype).removeprefix('torch.')}")
        idxs = idxs.long()
    return torch.ops.mrcnn.soft_nms(
        boxes.detach(), scores.detach(), idxs, METHODS[method], iou_threshold, sigma, score_threshold
    )


@torch.library.register_fake("mrcnn::soft_nms")
def _soft_nms_shape(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor | None,
    method: int,
    iou_threshold: float,
    sigma: float,
    score_threshold: float,
) -> Tensor:
    return scores.new_empty(scores.shape[0])
