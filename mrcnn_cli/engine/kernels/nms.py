"""nms and batched_nms: checked on crowded boxes, raced on those of a region proposal network."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from mrcnn_cli.engine.kernels.check import Check
from mrcnn_cli.engine.kernels.inputs import clustered_boxes, some_scores, spread_boxes
from mrcnn_cli.engine.kernels.race import Race, Work, torchvision
from mrcnn_cli.ops import batched_nms, nms, reference

TYPES = ("float64", "float32")  # half precision rounds the boxes, whose order then is another one


def _crowd() -> tuple[Tensor, Tensor, Tensor]:
    """300 boxes, scores and groups. Whole pixels are exact in every type, so every type must keep the same boxes."""
    random = torch.Generator().manual_seed(0)
    corner = torch.randint(0, 64, (300, 2), generator=random).double()
    boxes = torch.cat([corner, corner + torch.randint(4, 40, (300, 2), generator=random)], 1)
    return boxes, some_scores(300).double(), torch.randint(0, 4, (300,), generator=random)


def checks() -> Iterator[Check]:
    boxes, scores, _ = _crowd()
    yield Check(
        "300 boxes",
        lambda b: nms(b, scores.to(b.device), 0.5),
        lambda b: reference.nms(b, scores, 0.5),
        (boxes,),
        exact=True,
        dtypes=TYPES,
    )


def batched_checks() -> Iterator[Check]:
    boxes, scores, groups = _crowd()
    yield Check(
        "300 boxes, 4 groups",
        lambda b: batched_nms(b, scores.to(b.device), groups.to(b.device), 0.5),
        lambda b: reference.batched_nms(b, scores, groups, 0.5),
        (boxes,),
        exact=True,
        dtypes=TYPES,
    )


def races(device: torch.device) -> Iterator[Race]:
    vision = torchvision()
    for count in (1000, 2000, 6000, 50000):
        for name, boxes in (("clustered", clustered_boxes(count)), ("spread", spread_boxes(count))):
            boxes, scores = boxes.to(device), some_scores(count).to(device)
            for threshold in (0.5, 0.7):
                peers: dict[str, Work] = {}
                if count <= 1000:
                    peers["plain"] = partial(_plain_nms, boxes, scores, threshold)
                if vision:
                    peers["torchvision"] = partial(vision.ops.nms, boxes, scores, threshold)
                yield Race(f"{count} {name} boxes, {threshold}", partial(nms, boxes, scores, threshold), peers)


def batched_races(device: torch.device) -> Iterator[Race]:
    vision = torchvision()
    # a detection head's boxes, and those of a region proposal network by level
    for count, number, of, threshold in ((20000, 80, "classes", 0.5), (4500, 5, "levels", 0.7)):
        groups = torch.randint(0, number, (count,), generator=torch.Generator().manual_seed(4)).to(device)
        scores = some_scores(count).to(device)
        for name, boxes in (("clustered", clustered_boxes(count)), ("spread", spread_boxes(count))):
            boxes = boxes.to(device)
            peers: dict[str, Work] = {}
            if vision:
                peers["torchvision"] = partial(vision.ops.batched_nms, boxes, scores, groups, threshold)
            ours = partial(batched_nms, boxes, scores, groups, threshold)
            yield Race(f"{count} {name} boxes, {number} {of}, {threshold}", ours, peers)


def _plain_nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """NMS with PyTorch's own operators: a row of overlaps for each box that stays."""
    order = scores.argsort(descending=True, stable=True)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept = []
    while len(order):
        best, order = order[0], order[1:]
        kept.append(best)
        sides = torch.minimum(boxes[best, 2:], boxes[order, 2:]) - torch.maximum(boxes[best, :2], boxes[order, :2])
        overlap = sides.clamp(min=0).prod(1)
        order = order[overlap / (area[best] + area[order] - overlap) <= threshold]
    return torch.stack(kept)
