"""soft_nms: checked on crowded boxes, raced on what a detection head hands over."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from mrcnn_cli.engine.kernels.check import Check
from mrcnn_cli.engine.kernels.inputs import clustered_boxes, some_scores
from mrcnn_cli.engine.kernels.race import Race
from mrcnn_cli.ops import reference, soft_nms, soft_nms_scores

DECAYS = {
    "linear": lambda overlap: torch.where(overlap > 0.3, 1 - overlap, 1.0),
    "gaussian": lambda overlap: torch.exp(-(overlap**2) / 0.5),
}


def checks() -> Iterator[Check]:
    random = torch.Generator().manual_seed(0)
    corner = torch.randint(0, 64, (200, 2), generator=random).double()
    boxes = torch.cat([corner, corner + torch.randint(4, 40, (200, 2), generator=random)], 1)
    groups = torch.randint(0, 4, (200,), generator=random)

    def on_groups(function: Callable[..., Tensor], method: str) -> Callable[[Tensor], Tensor]:
        return lambda scores: function(boxes.to(scores.device), scores, method=method, idxs=groups.to(scores.device))

    for method in DECAYS:
        yield Check(
            f"200 boxes, 4 groups, {method}",
            on_groups(soft_nms_scores, method),
            on_groups(reference.soft_nms_scores, method),
            (some_scores(200).double(),),
        )


def races(device: torch.device) -> Iterator[Race]:
    for count, classes in ((1000, 1), (2000, 80)):
        boxes, scores = clustered_boxes(count).to(device), some_scores(count).to(device)
        groups = torch.randint(0, classes, (count,), generator=torch.Generator().manual_seed(4)).to(device)
        for method in DECAYS:
            yield Race(
                f"{count} clustered boxes, {classes} class{'es' if classes > 1 else ''}, {method}",
                partial(soft_nms, boxes, scores, method=method, idxs=groups),
                {"plain": partial(_plain_soft_nms, boxes, scores, groups, method)},
                # the same picks; their scores to the rounding of the exponential
                tolerance=1e-5,
            )


def _plain_soft_nms(boxes: Tensor, scores: Tensor, groups: Tensor, method: str) -> tuple[Tensor, Tensor]:
    """Soft-NMS with PyTorch's own operators: a row of overlaps for each box that is picked."""
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    live, result = scores.clone(), torch.zeros_like(scores)
    while True:
        score, best = live.max(0)
        if score < 0.001:
            order = result.sort(descending=True, stable=True)
            kept = int((result > 0).sum())
            return order.indices[:kept], order.values[:kept]
        sides = torch.minimum(boxes[best, 2:], boxes[:, 2:]) - torch.maximum(boxes[best, :2], boxes[:, :2])
        intersection = sides.clamp(min=0).prod(1)
        overlap = intersection / (area[best] + area - intersection)
        factor = DECAYS[method](overlap)
        result[best] = score
        live = live * torch.where(groups == groups[best], factor, 1.0)
        live[best] = 0
