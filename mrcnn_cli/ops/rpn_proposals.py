"""From what a region proposal network says of its anchors to proposals: "Faster R-CNN" (Ren et al., 2015), section 3.1.

Anchors are never stored: the best of each level are found by their logits, and only those become boxes. Nothing here
has a gradient; the network learns from its losses, not from the proposals.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mrcnn_cli.ops.box_coding import LOG_MAX_SCALE
from mrcnn_cli.ops.grid_anchors import base_corners, both_strides
from mrcnn_cli.ops.nms import nms_sorted
from mrcnn_cli.structures import Size

Stride = int | float | tuple[float, float]


def rpn_proposals(
    logits: Sequence[Tensor],
    deltas: Sequence[Tensor],
    image_sizes: Sequence[Size],
    sizes: Sequence[Sequence[float]],
    ratios: Sequence[float],
    strides: Sequence[Stride],
    *,
    pre_nms_top_n: int = 1000,
    post_nms_top_n: int = 1000,
    nms_threshold: float = 0.7,
    min_size: float = 1e-3,
    weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
    clamp: float = LOG_MAX_SCALE,
    rounded: bool = False,
    offset: float = 0.0,
) -> tuple[list[Tensor], list[Tensor]]:
    """The best boxes of each image and their logits, best first, from the raw outputs of the network.

    Per level the anchors with the best logits, decoded and cut to the image; then those that are longer than
    `min_size`, after non-maximum suppression within each level; of these the best of all levels. The boxes of
    torchvision's RegionProposalNetwork, but for the rounding of exp() and for equal logits, among which torchvision's
    choice is undefined and ours is by level, then y, x, size, ratio. An anchor whose logit is NaN is never chosen; one
    whose logit or box is not finite is chosen but is no proposal.

    Args:
        logits: per level [N, A, H_l, W_l], contiguous or channels last (others are copied); float32, float64, float16
            or bfloat16, all of one type.
        deltas: per level [N, 4 * A, H_l, W_l] of the same type; dx, dy, dw, dh of the first anchor, then the second.
        image_sizes: (height, width) of each image in pixels, to which boxes are cut.
        sizes: per level the anchors' sizes, as for `grid_anchors`; len(sizes[l]) * len(ratios) = A, at most 64.
        ratios: height / width of the anchors.
        strides: per level the pixels from cell to cell, or (vertical, horizontal).
        pre_nms_top_n: best anchors of each level that become boxes.
        post_nms_top_n: proposals of an image, at most.
        nms_threshold: intersection over union above which the worse of two boxes of a level goes.
        min_size: both sides of a proposal are longer than that, in pixels.
        weights: what dx, dy, dw, dh were multiplied by, as for `decode`.
        clamp: upper limit of dw and dh, as for `decode`.
        rounded: round the base anchors, as for `grid_anchors`.
        offset: of the anchors' centres, in strides.

    Returns:
        N boxes [P_i, 4] and N logits [P_i], P_i <= post_nms_top_n: float32 also from half precision, which can't hold
        coordinates; float64 from float64.

    Raises:
        RuntimeError: a shape or type does not fit.
    """
    boxes, scores = rpn_proposals_padded(
        logits,
        deltas,
        image_sizes,
        sizes,
        ratios,
        strides,
        pre_nms_top_n=pre_nms_top_n,
        post_nms_top_n=post_nms_top_n,
        nms_threshold=nms_threshold,
        min_size=min_size,
        weights=weights,
        clamp=clamp,
        rounded=rounded,
        offset=offset,
    )
    counts = (scores > -torch.inf).sum(1).tolist()  # the one wait for a GPU
    return (
        [box[:count] for box, count in zip(boxes, counts, strict=True)],
        [score[:count] for score, count in zip(scores, counts, strict=True)],
    )


def rpn_proposals_padded(
    logits: Sequence[Tensor],
    deltas: Sequence[Tensor],
    image_sizes: Sequence[Size],
    sizes: Sequence[Sequence[float]],
    ratios: Sequence[float],
    strides: Sequence[Stride],
    *,
    pre_nms_top_n: int = 1000,
    post_nms_top_n: int = 1000,
    nms_threshold: float = 0.7,
    min_size: float = 1e-3,
    weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
    clamp: float = LOG_MAX_SCALE,
    rounded: bool = False,
    offset: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """`rpn_proposals` in shapes that follow from the shapes in, for torch.compile and CUDA graphs.

    Nothing is read back from the device, and nothing is copied to it.

    Args:
        logits, deltas, ...: as for `rpn_proposals`.

    Returns:
        boxes [N, P, 4] and logits [N, P], best first, P = min(post_nms_top_n, anchors chosen before suppression). Where
        an image has fewer proposals the rest is boxes of zeros with logits of -inf.

    Raises:
        RuntimeError: as for `rpn_proposals`.
    """
    boxes, scores, groups = rpn_candidates(
        logits,
        deltas,
        image_sizes,
        sizes,
        ratios,
        strides,
        pre_nms_top_n=pre_nms_top_n,
        min_size=min_size,
        weights=weights,
        clamp=clamp,
        rounded=rounded,
        offset=offset,
    )
    # Sorted within each group, which is all that suppression needs.
    keep = nms_sorted(boxes.view(-1, 4), nms_threshold, groups.view(-1))
    return torch.ops.mrcnn.rpn_best(boxes, scores, keep, post_nms_top_n)


def rpn_candidates(
    logits: Sequence[Tensor],
    deltas: Sequence[Tensor],
    image_sizes: Sequence[Size],
    sizes: Sequence[Sequence[float]],
    ratios: Sequence[float],
    strides: Sequence[Stride],
    *,
    pre_nms_top_n: int = 1000,
    min_size: float = 1e-3,
    weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
    clamp: float = LOG_MAX_SCALE,
    rounded: bool = False,
    offset: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """The best anchors of each level as boxes, before any suppression.

    On the CPU the boxes have the bits of `decode` and `clip_boxes` on `grid_anchors`.

    Args:
        logits, deltas, ...: as for `rpn_proposals`.

    Returns:
        boxes [N, K, 4], logits [N, K] and groups [N, K] int64, level after level and best first within each level, with
        K the sum over levels of min(pre_nms_top_n, A * H_l * W_l). The group is image * L + level. A box that is no
        candidate - too small, not finite, or of a NaN logit - is zeros, its logit -inf.

    Raises:
        RuntimeError: as for `rpn_proposals`.
    """
    if not len(sizes) == len(strides) == len(logits):
        raise RuntimeError(
            f"rpn_proposals: sizes and strides must be one per level, got {len(sizes)} and {len(strides)} for "
            f"{len(logits)} levels"
        )
    for level, (scales, map) in enumerate(zip(sizes, logits, strict=True)):
        if map.ndim == 4 and map.shape[1] != len(scales) * len(ratios):
            raise RuntimeError(
                f"rpn_proposals: sizes[{level}] and ratios make {len(scales) * len(ratios)} anchors per cell, "
                f"logits[{level}] has {map.shape[1]}"
            )
    corners = [corner for level in sizes for corner in base_corners(level, ratios, rounded, "rpn_proposals")]
    return torch.ops.mrcnn.rpn_candidates(
        [map.detach() for map in logits],
        [map.detach() for map in deltas],
        corners,
        [side for stride in strides for side in both_strides(stride)],
        offset,
        [side for size in image_sizes for side in size],
        pre_nms_top_n,
        list(weights),
        clamp,
        min_size,
    )


@torch.library.register_fake("mrcnn::rpn_candidates")
def _candidates_shape(
    logits: list[Tensor],
    deltas: list[Tensor],
    base_anchors: list[float],
    strides: list[float],
    offset: float,
    image_sizes: list[int],
    pre_nms_top_n: int,
    *_: object,
) -> tuple[Tensor, Tensor, Tensor]:
    first = logits[0]
    images, count = (
        first.shape[0],
        sum(min(pre_nms_top_n, map.shape[1] * map.shape[2] * map.shape[3]) for map in logits),
    )
    dtype = torch.float64 if first.dtype == torch.float64 else torch.float32
    return (
        first.new_empty((images, count, 4), dtype=dtype),
        first.new_empty((images, count), dtype=dtype),
        first.new_empty((images, count), dtype=torch.int64),
    )


@torch.library.register_fake("mrcnn::rpn_best")
def _best_shape(boxes: Tensor, logits: Tensor, keep: Tensor, post_nms_top_n: int) -> tuple[Tensor, Tensor]:
    count = min(post_nms_top_n, logits.shape[1])
    return boxes.new_empty((boxes.shape[0], count, 4)), logits.new_empty((boxes.shape[0], count))
