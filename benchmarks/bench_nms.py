"""Non-maximum suppression, beside torchvision.ops.nms and batched_nms; the kept boxes must be the same."""

import torch
import torchvision
from side_by_side import Case, Work, main
from torch import Tensor

from mrcnn_cli.ops import batched_nms, nms


def crowded(count: int) -> tuple[Tensor, Tensor]:
    """Boxes as a region proposal network gives them, twenty around each of many places, and their scores."""
    random = torch.Generator().manual_seed(3)
    places = max(count // 20, 1)
    centers = torch.rand(places, 2, generator=random) * torch.tensor([1344.0, 800.0])
    sizes = torch.exp(torch.rand(places, generator=random) * 3 + 3)
    at = torch.randint(0, places, (count,), generator=random)
    center = centers[at] + torch.randn(count, 2, generator=random) * sizes[at, None] * 0.1
    size = sizes[at, None] * torch.exp(torch.randn(count, 2, generator=random) * 0.15)
    return torch.cat([center - size / 2, center + size / 2], 1), torch.rand(count, generator=random)


def single(count: int, threshold: float) -> Case:
    def make(device: torch.device) -> tuple[Work, Work]:
        boxes, scores = (tensor.to(device) for tensor in crowded(count))
        return (
            lambda: nms(boxes, scores, threshold),
            lambda: torchvision.ops.nms(boxes, scores, threshold),
        )

    return Case(f"nms, {count} boxes, threshold {threshold}", make)


def batched(count: int, classes: int, threshold: float) -> Case:
    def make(device: torch.device) -> tuple[Work, Work]:
        boxes, scores = (tensor.to(device) for tensor in crowded(count))
        idxs = torch.randint(classes, (count,), generator=torch.Generator().manual_seed(4)).to(device)
        # Scores as ranks: no two are equal, so there is one right order.
        scores = scores.argsort().argsort().float()
        return (
            lambda: batched_nms(boxes, scores, idxs, threshold),
            lambda: torchvision.ops.batched_nms(boxes, scores, idxs, threshold),
        )

    return Case(f"batched_nms, {count} boxes of {classes} classes, threshold {threshold}", make)


CASES = [
    single(1000, 0.5),
    single(6000, 0.7),
    single(12000, 0.7),
    single(50000, 0.7),
    batched(1000, 80, 0.5),
    batched(20000, 80, 0.5),
    batched(8000, 5, 0.7),
]

if __name__ == "__main__":
    main(__doc__.splitlines()[0], CASES)
