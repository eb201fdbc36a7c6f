"""Proposals, anchor by anchor."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mrcnn_cli.ops.box_coding import LOG_MAX_SCALE
from mrcnn_cli.ops.reference.grid_anchors import grid_anchors
from mrcnn_cli.ops.reference.nms import batched_nms


def rpn_candidates(
    logits: Sequence[Tensor],
    deltas: Sequence[Tensor],
    image_sizes: Sequence[tuple[int, int]],
    sizes: Sequence[Sequence[float]],
    ratios: Sequence[float],
    strides: Sequence[float | tuple[float, float]],
    *,
    pre_nms_top_n: int = 1000,
    min_size: float = 1e-3,
    weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
    clamp: float = LOG_MAX_SCALE,
    rounded: bool = False,
    offset: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes [N, K, 4] and logits [N, K] float64, groups [N, K]: the best anchors of each level, level after level."""
    boxes: list[list[float]] = []
    scores: list[float] = []
    groups: list[int] = []
    for image, size in enumerate(image_sizes):
        for level, (logit, delta) in enumerate(zip(logits, deltas, strict=True)):
            count, (height, width) = logit.shape[1], logit.shape[2:]
            cells = [(y, x, a) for y in range(height) for x in range(width) for a in range(count)]
            said = [float(logit[image, a, y, x]) for y, x, a in cells]
            anchors = grid_anchors(
                sizes[level], ratios, (height, width), strides[level], rounded=rounded, offset=offset
            ).tolist()
            # by falling logit, NaN last, equal ones by their number
            order = [
                i for _, _, i in sorted((math.isnan(s), 0.0 if math.isnan(s) else -s, i) for i, s in enumerate(said))
            ]
            for i in order[:pre_nms_top_n]:
                y, x, a = cells[i]
                box = _decoded(delta[image, 4 * a : 4 * a + 4, y, x].double().tolist(), anchors[i], weights, clamp)
                box = [
                    min(max(side, 0.0), float(limit))
                    for side, limit in zip(box, (*size[::-1], *size[::-1]), strict=True)
                ]
                usable = box[2] - box[0] > min_size and box[3] - box[1] > min_size and math.isfinite(said[i])
                boxes.append(box if usable else [0.0] * 4)
                scores.append(said[i] if usable else -math.inf)
                groups.append(image * len(logits) + level)
    shape = (len(image_sizes), sum(min(pre_nms_top_n, map.shape[1:].numel()) for map in logits))
    return (
        torch.tensor(boxes, dtype=torch.float64).reshape(*shape, 4),
        torch.tensor(scores, dtype=torch.float64).reshape(shape),
        torch.tensor(groups, dtype=torch.int64).reshape(shape),
    )


def rpn_proposals(
    logits: Sequence[Tensor],
    deltas: Sequence[Tensor],
    image_sizes: Sequence[tuple[int, int]],
    sizes: Sequence[Sequence[float]],
    ratios: Sequence[float],
    strides: Sequence[float | tuple[float, float]],
    *,
    post_nms_top_n: int = 1000,
    nms_threshold: float = 0.7,
    **options: Any,
) -> tuple[list[Tensor], list[Tensor]]:
    """N boxes [P_i, 4] and logits [P_i] float64: the best candidates that suppression within their level leaves."""
    candidates = rpn_candidates(logits, deltas, image_sizes, sizes, ratios, strides, **options)
    boxes, scores = [], []
    for box, score, group in zip(*candidates, strict=True):
        usable = score > -math.inf
        box, score, group = box[usable], score[usable], group[usable]
        kept = batched_nms(box, score, group, nms_threshold)[:post_nms_top_n]
        boxes.append(box[kept])
        scores.append(score[kept])
    return boxes, scores


def _decoded(delta: list[float], anchor: list[float], weights: Sequence[float], clamp: float) -> list[float]:
    dx, dy, dw, dh = (value / weight for value, weight in zip(delta, weights, strict=True))
    width, height = anchor[2] - anchor[0], anchor[3] - anchor[1]
    x, y = anchor[0] + width / 2 + dx * width, anchor[1] + height / 2 + dy * height
    half_width, half_height = width / 2 * math.exp(min(dw, clamp)), height / 2 * math.exp(min(dh, clamp))
    return [x - half_width, y - half_height, x + half_width, y + half_height]
