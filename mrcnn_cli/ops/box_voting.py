"""Box voting, from "Object Detection via a Multi-region and Semantic Segmentation-aware CNN Model" (Gidaris and
Komodakis, 2015).

The ways to score a box anew are those of Detectron, by its names.
"""

import torch
from torch import Tensor

METHODS = {"ID": 0, "TEMP_AVG": 1, "AVG": 2, "IOU_AVG": 3, "GENERALIZED_AVG": 4, "QUASI_SUM": 5}


def box_voting(
    boxes: Tensor,
    scores: Tensor,
    keep: Tensor,
    iou_threshold: float = 0.8,
    method: str = "ID",
    beta: float = 1.0,
    idxs: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Kept boxes as averages of all boxes that lie on them, weighted by the scores, and scores anew.

    The voters of a kept box are the boxes of its group that overlap it by iou_threshold or more, itself among them.
    With their scores s and overlaps o, the new score is

    ==================  ==============================================================
    ID                  the old one
    TEMP_AVG            the mean of softmax(log [s, 1 - s] / beta), its first entry
    AVG                 the mean of s
    IOU_AVG             the mean of s, weighted by o
    GENERALIZED_AVG     (the mean of s ** beta) ** (1 / beta)
    QUASI_SUM           the sum of s by count ** beta
    ==================  ==============================================================

    A kept box that overlaps nothing, not even itself (NaN, no area), stays as it is, and so does one whose voters'
    scores sum up to no more than 0. Sums are made in float64; which boxes vote is the same on every device, and for any
    number of threads the result has the same bits. The shapes out follow from those in. Nothing is differentiated.

    Args:
        boxes: [N, 4] x1, y1, x2, y2.
        scores: [N], 0..1.
        keep: [K] int64, which boxes are kept; for example from `batched_nms`.
        iou_threshold: intersection over union from which on a box votes; above 0.
        method: one of the names above.
        beta: above 0.
        idxs: [N] whole numbers; boxes vote for boxes of their own number (class, image) only. None: one group.

    Returns:
        [K, 4] in the type of `boxes` and [K] in the type of `scores`.

    Raises:
        RuntimeError: a shape, type or value does not fit, or (on the CPU) `keep` names a box that is not there. On a
            GPU that row is NaN.
    """
    if method not in METHODS:
        raise RuntimeError(f"box_voting: method must be one of {', '.join(METHODS)}, got {method!r}")
    for name, tensor in (("scores", scores), ("keep", keep)):
        if tensor.device != boxes.device:
            raise RuntimeError(
                f"box_voting: {name} must be on the device of boxes, {boxes.device}, got {tensor.device}"
            )
    if idxs is not None:
        if idxs.is_floating_point():
            raise RuntimeError(f"box_voting: idxs must be whole numbers, got {str(idxs.dtype).removeprefix('torch.')}")
        idxs = idxs.long()
    return torch.ops.mrcnn.box_voting(boxes.detach(), scores.detach(), keep, idxs, iou_threshold, METHODS[method], beta)


@torch.library.register_fake("mrcnn::box_voting")
def _box_voting_shape(
    boxes: Tensor,
    scores: Tensor,
    keep: Tensor,
    groups: Tensor | None,
    iou_threshold: float,
    method: int,
    beta: float,
) -> tuple[Tensor, Tensor]:
    return boxes.new_empty(keep.shape[0], 4), scores.new_empty(keep.shape[0])
