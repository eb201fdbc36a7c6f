"""Which object each anchor or proposal stands for: "Faster R-CNN" (Ren et al., 2015), section 3.1.2."""

import torch
from torch import Tensor

BACKGROUND, IGNORED = -1, -2

# An anchor that lies to this share in a crowd is no background (Detectron's value).
CROWD_COVERAGE = 0.7


def match_anchors(
    anchors: Tensor,
    boxes: Tensor,
    low: float,
    high: float,
    allow_low_quality: bool = False,
    ignore: Tensor | None = None,
) -> Tensor:
    """For each anchor the object that it is matched to, by intersection over union.

    IoU >= high matches the best object (the first of equals); IoU < low is background; between is ignored. The same
    matches as Detectron2's and torchvision's Matcher make of the matrix of all overlaps, which is never built: beside
    the arguments and the result, at most some 16 MB and four bytes per anchor are used.

    An anchor with a NaN coordinate overlaps nothing; an object or crowd with one takes no part. (In torchvision every
    anchor is matched to such an object.) Boxes without area overlap nothing.

    Args:
        anchors: [A, 4] float32, float64, float16 or bfloat16. Half precision is compared in float32; if one argument
            is float64, all are compared in it.
        boxes: [G, 4] objects.
        low: upper end (exclusive) of background.
        high: lower end (inclusive) of objects. Both are rounded to the type that is compared in.
        allow_low_quality: also match the anchors that tie for the best IoU of some object, so that none goes without;
            each keeps its own best object. An object that overlaps no anchor ties with all of them at 0, as in
            Detectron2 and torchvision.
        ignore: [I, 4] crowd regions: a background anchor that lies to 70 % in one of them is ignored.

    Returns:
        [A] int64: index into `boxes`, -1 background, -2 ignored.

    Raises:
        RuntimeError: a shape or type does not fit, or low is above high.
    """
    crowds = ignore.detach() if ignore is not None else None
    return torch.ops.mrcnn.match_anchors(
        anchors.detach(), boxes.detach(), crowds, float(low), float(high), CROWD_COVERAGE, allow_low_quality
    )


@torch.library.register_fake("mrcnn::match_anchors")
def _match_anchors_shape(
    anchors: Tensor,
    boxes: Tensor,
    ignore: Tensor | None,
    low: float,
    high: float,
    crowd_coverage: float,
    allow_low_quality: bool,
) -> Tensor:
    return anchors.new_empty(anchors.shape[0], dtype=torch.int64)
