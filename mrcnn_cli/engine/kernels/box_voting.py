"""box_voting: checked on crowded boxes, raced on those that nms leaves of a crowd."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from mrcnn_cli.engine.kernels.check import Check
from mrcnn_cli.engine.kernels.inputs import clustered_boxes, some_scores
from mrcnn_cli.engine.kernels.race import Race
from mrcnn_cli.ops import batched_nms, box_voting, reference
from mrcnn_cli.ops.box_voting import METHODS


def checks() -> Iterator[Check]:
    random = torch.Generator().manual_seed(0)
    corner = torch.randint(0, 64, (200, 2), generator=random).double()
    boxes = torch.cat([corner, corner + torch.randint(4, 40, (200, 2), generator=random)], 1) / 64
    groups = torch.randint(0, 4, (200,), generator=random)
    keep = batched_nms(boxes, some_scores(200).double(), groups, 0.5)

    def joined(function: Callable[..., tuple[Tensor, Tensor]], method: str) -> Callable[[Tensor], Tensor]:
        def of_scores(scores: Tensor) -> Tensor:
            there = [tensor.to(scores.device) for tensor in (boxes, keep, groups)]
            voted, left = function(there[0], scores, there[1], 0.4, method, 2.0, there[2])
            return torch.cat([voted, left[:, None]], 1)

        return of_scores

    for method in METHODS:
        yield Check(
            f"200 boxes, 4 groups, {method}",
            joined(box_voting, method),
            joined(reference.box_voting, method),
            (some_scores(200).double(),),
        )


def races(device: torch.device) -> Iterator[Race]:
    for count, classes in ((1000, 1), (5000, 80)):
        boxes, scores = clustered_boxes(count), some_scores(count)
        groups = torch.randint(0, classes, (count,), generator=torch.Generator().manual_seed(4))
        keep = batched_nms(boxes, scores, groups, 0.5)
        boxes, scores, groups, keep = (tensor.to(device) for tensor in (boxes, scores, groups, keep))
        yield Race(
            f"{count} clustered boxes, {classes} class{'es' if classes > 1 else ''}, {len(keep)} kept",
            partial(box_voting, boxes, scores, keep, 0.8, "AVG", idxs=groups),
            {"plain": partial(_plain_voting, boxes, scores, keep, groups)},
            tolerance=1e-5,
        )


def _plain_voting(boxes: Tensor, scores: Tensor, keep: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """Box voting with PyTorch's own operators: all overlaps, and a matrix product with the boxes."""
    kept = boxes[keep]
    sides = torch.minimum(kept[:, None, 2:], boxes[:, 2:]) - torch.maximum(kept[:, None, :2], boxes[:, :2])
    intersection = sides.clamp(min=0).prod(2)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    overlap = intersection / (area[keep, None] + area - intersection)
    votes = ((overlap >= 0.8) & (groups[keep, None] == groups)).float()
    weights = votes * scores
    return weights @ boxes / weights.sum(1, keepdim=True), weights.sum(1) / votes.sum(1)
