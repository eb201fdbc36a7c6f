"""mask_targets: checked on small objects, raced on the positives of an image."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from mrcnn_cli.engine.kernels.check import Check
from mrcnn_cli.engine.kernels.inputs import spread_boxes
from mrcnn_cli.engine.kernels.race import Race, Work, torchvision
from mrcnn_cli.ops import mask_targets, reference

SIZE = (800, 1333)
OBJECTS, REGIONS, TARGET = 32, 128, 28


def _polygons(boxes: Tensor, corners: int) -> list[list[list[float]]]:
    """For each box an object of one polygon, a star whose tips reach its sides."""
    random = np.random.default_rng(3)
    objects = []
    for box in boxes.double().numpy():
        angles = np.sort(random.random(corners)) * 2 * np.pi
        reach = random.uniform(0.6, 1.0, corners)
        points = np.stack([reach * np.cos(angles), reach * np.sin(angles)], 1)
        center, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2
        objects.append([(center + points * half).reshape(-1).tolist()])
    return objects


def _encodings(objects: list[list[list[float]]], size: tuple[int, int]) -> list[dict[str, Any]]:
    return [coco_mask.merge(coco_mask.frPyObjects(polygons, *size)) for polygons in objects]


def _around(boxes: Tensor, count: int) -> tuple[list[int], Tensor]:
    """Which object each of `count` regions is of, and regions that lie loosely on their objects."""
    random = torch.Generator().manual_seed(2)
    chosen = torch.arange(count) % len(boxes)
    sides = (boxes[:, 2:] - boxes[:, :2])[chosen].repeat(1, 2)
    return chosen.tolist(), boxes[chosen] + torch.randn(count, 4, generator=random) * sides * 0.08


def checks() -> Iterator[Check]:
    boxes = spread_boxes(6, (40, 56), 8, 40)
    objects = _polygons(boxes, 9)
    chosen, regions = _around(boxes, 12)
    turned = torch.tensor([[0.9, 0.4, -5.0], [-0.2, 1.1, 4.0]], dtype=torch.float64)
    for kind, masks in (("polygons", objects), ("run lengths", _encodings(objects, (40, 56)))):
        for case, matrix in ((f"12 regions, {kind}", None), (f"12 regions, {kind}, turned", turned)):
            yield Check(
                case,
                lambda b, m=masks, by=matrix: mask_targets([m[i] for i in chosen], b, 7, matrix=by),
                lambda b, m=masks, by=matrix: reference.mask_targets([m[i] for i in chosen], b, 7, matrix=by),
                (regions.double(),),
                exact=True,
                dtypes=("float64", "float32"),
            )


def races(device: torch.device) -> Iterator[Race]:
    boxes = spread_boxes(OBJECTS, SIZE, 32, 500)
    objects = _polygons(boxes, 40)
    chosen, regions = _around(boxes, REGIONS)
    regions = regions.to(device)
    polygons = [objects[i] for i in chosen]
    yield Race(
        f"{REGIONS} regions of {OBJECTS} polygons of 40 corners, {TARGET} x {TARGET}",
        partial(mask_targets, polygons, regions, TARGET),
        {"plain": lambda: _plain_polygons(polygons, regions)},
    )
    encodings = _encodings(objects, SIZE)
    peers: dict[str, Work] = {}
    vision = torchvision()
    if vision:

        def theirs() -> Tensor:
            full = torch.from_numpy(coco_mask.decode(encodings)).permute(2, 0, 1)[:, None].to(device).float()
            rois = torch.cat([torch.tensor(chosen, device=device)[:, None], regions], 1)
            return vision.ops.roi_align(full, rois, TARGET, 1.0, 0, True)[:, 0]

        peers["torchvision"] = theirs
    encoded = [encodings[i] for i in chosen]
    yield Race(
        f"{REGIONS} regions of {OBJECTS} run-length encodings of {SIZE[0]} x {SIZE[1]}, {TARGET} x {TARGET}",
        partial(mask_targets, encoded, regions, TARGET, threshold=None),
        peers,
        1e-4,
    )


def _plain_polygons(objects: list[list[list[float]]], regions: Tensor) -> Tensor:
    """Each object's polygons scaled to its region and filled by pycocotools, as Detectron2 does."""
    targets = []
    for polygons, box in zip(objects, regions.double().cpu().numpy(), strict=True):
        scale = TARGET / np.maximum(box[2:] - box[:2], 0.1)
        moved = [((np.reshape(polygon, (-1, 2)) - box[:2]) * scale).reshape(-1).tolist() for polygon in polygons]
        filled = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(moved, TARGET, TARGET)))
        targets.append(torch.from_numpy(filled))
    return torch.stack(targets).float().to(regions.device)
