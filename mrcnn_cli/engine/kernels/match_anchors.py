"""match_anchors: checked where many overlaps are equal, raced on the anchors of a whole pyramid."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mrcnn_cli.engine.kernels.check import Check
from mrcnn_cli.engine.kernels.inputs import pyramid_anchors, spread_boxes
from mrcnn_cli.engine.kernels.race import Race, Work, torchvision
from mrcnn_cli.engine.memory import free_memory_mb
from mrcnn_cli.ops import match_anchors, reference

LOW, HIGH = 0.3, 0.7  # of a region proposal network
MATRICES = 41  # bytes per anchor and object that torchvision needs: 17.7 GB for 2000 objects


def _on_a_grid(count: int, seed: int) -> Tensor:
    """Whole pixels are exact in every type, so every type must match the same objects."""
    random = torch.Generator().manual_seed(seed)
    corner = torch.randint(0, 30, (count, 2), generator=random).double()
    return torch.cat([corner, corner + torch.randint(1, 12, (count, 2), generator=random)], 1)


def checks() -> Iterator[Check]:
    anchors, boxes, crowds = _on_a_grid(200, 0), _on_a_grid(11, 1), _on_a_grid(4, 2)
    for allow_low_quality in (False, True):
        yield Check(
            f"200 anchors, 11 objects, 4 crowds{', low quality too' if allow_low_quality else ''}",
            lambda a, b, c, low_quality=allow_low_quality: match_anchors(a, b, 0.25, 0.5, low_quality, c),
            lambda a, b, c, low_quality=allow_low_quality: reference.match_anchors(a, b, 0.25, 0.5, low_quality, c),
            (anchors, boxes, crowds),
            exact=True,
        )


def races(device: torch.device) -> Iterator[Race]:
    vision = torchvision()
    anchors = pyramid_anchors().to(device)
    for count in (20, 200, 2000, 5000):
        boxes = spread_boxes(count, (800, 1088)).to(device)
        peers: dict[str, Work] = {}
        if count <= 20:
            peers["plain"] = partial(_plain_matches, anchors, boxes)
        if vision and len(anchors) * count * MATRICES < free_memory_mb(device) / 2 * 1e6:
            matcher = vision.models.detection._utils.Matcher(HIGH, LOW, allow_low_quality_matches=True)
            peers["torchvision"] = partial(_torchvision_matches, vision, matcher, anchors, boxes)
        yield Race(
            f"{len(anchors)} anchors, {count} objects",
            partial(match_anchors, anchors, boxes, LOW, HIGH, True),
            peers,
            bytes=anchors.numel() * anchors.element_size() + 8 * len(anchors),
        )


def _torchvision_matches(vision: Any, matcher: Any, anchors: Tensor, boxes: Tensor) -> Tensor:
    return matcher(vision.ops.box_iou(boxes, anchors))


def _plain_matches(anchors: Tensor, boxes: Tensor) -> Tensor:
    """Matches by the matrix of all overlaps, with PyTorch's own operators."""
    sides = torch.minimum(boxes[:, None, 2:], anchors[:, 2:]) - torch.maximum(boxes[:, None, :2], anchors[:, :2])
    shared = sides.clamp(min=0).prod(2)
    area, anchor_area = ((b[:, 2:] - b[:, :2]).prod(1) for b in (boxes, anchors))
    overlap = shared / (area[:, None] + anchor_area - shared)
    iou, best = overlap.max(0)
    matched = best.masked_fill(iou < HIGH, -2).masked_fill(iou < LOW, -1)
    return torch.where((overlap == overlap.amax(1, keepdim=True)).any(0), best, matched)
