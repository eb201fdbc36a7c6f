"""Which object each anchor or proposal stands for: "Faster R-CNN" (Ren et al., 2015), section 3.1.2."""

import torch
from torch import Tensor

from mrcnn_cli.ops.box_iou import box_coverage, box_iou

BACKGROUND, IGNORED = -1, -2

# An anchor that lies to this share in a crowd is no background (Detectron's value).
CROWD_COVERAGE = 0.7

# Pairs of anchors and boxes compared at a time: bounds the memory for images with thousands of objects.
PAIRS_AT_A_TIME = 1 << 22


def match_anchors(
    anchors: Tensor,
    boxes: Tensor,
    low: float,
    high: float,
    allow_low_quality: bool = False,
    ignore: Tensor | None = None,
) -> Tensor:
    """For each anchor the object that it is matched to, by intersection over union.

    IoU >= high matches the best object (the first of equals); IoU < low is background; between is ignored.

    Args:
        anchors: [A, 4].
        boxes: [G, 4] objects.
        low: upper end (exclusive) of background.
        high: lower end (inclusive) of objects.
        allow_low_quality: also match the anchors that tie for the best IoU of some object, so that none goes without;
            each keeps its own best object.
        ignore: [I, 4] crowd regions: a background anchor that lies to 70 % in one of them is ignored.

    Returns:
        [A] int64: index into `boxes`, -1 background, -2 ignored.
    """
    count = len(anchors)
    if len(boxes) == 0:
        matched = torch.full((count,), BACKGROUND, dtype=torch.int64, device=anchors.device)
    else:
        chunks = anchors.split(max(PAIRS_AT_A_TIME // len(boxes), 1))
        found = [box_iou(chunk, boxes).max(1) for chunk in chunks]
        iou, best = torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])
        matched = best.masked_fill(iou < high, IGNORED).masked_fill(iou < low, BACKGROUND)
        if allow_low_quality and count:
            best_of_box = torch.stack([box_iou(chunk, boxes).amax(0) for chunk in chunks]).amax(0)
            rescued = torch.cat([(box_iou(chunk, boxes) == best_of_box).any(1) for chunk in chunks])
            matched = torch.where(rescued, best, matched)
    if ignore is not None and len(ignore) and count:
        crowded = torch.cat(
            [
                (box_coverage(chunk, ignore) >= CROWD_COVERAGE).any(1)
                for chunk in anchors.split(max(PAIRS_AT_A_TIME // len(ignore), 1))
            ]
        )
        matched = matched.masked_fill(crowded & (matched == BACKGROUND), IGNORED)
    return matched
