"""Overlaps of boxes: checked on boxes that cross, touch nothing and lie in each other; raced on those of an image."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mrcnn_cli import ops
from mrcnn_cli.engine.kernels.check import Check
from mrcnn_cli.engine.kernels.inputs import clustered_boxes, spread_boxes
from mrcnn_cli.engine.kernels.race import Race, Work, gradient_of, torchvision
from mrcnn_cli.ops import reference


def _crossing(count: int, seed: int) -> Tensor:
    """Boxes up to eight wide in a square of ten, no two sides in line."""
    random = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=random, dtype=torch.float64) * 10
    return torch.cat([corner, corner + torch.rand(count, 2, generator=random, dtype=torch.float64) * 7 + 1], 1)


def _checks(name: str, rows: int, columns: int) -> Iterator[Check]:
    yield Check(
        f"{rows} and {columns} boxes",
        getattr(ops, name),
        getattr(reference, name),
        (_crossing(rows, 1), _crossing(columns, 2)),
        differentiable=True,
    )


def checks_of(name: str) -> Callable[[], Iterator[Check]]:
    """The checks of a function that compares all pairs, or (paired_..., ..._loss) box by box."""
    by_place = name.startswith("paired") or name.endswith("loss")
    return partial(_checks, name, 12, 12 if by_place else 9)


def _races(name: str, device: torch.device) -> Iterator[Race]:
    vision = torchvision()
    other = getattr(vision.ops, name, None) if vision else None
    function = getattr(ops, name)
    for rows, columns in ((2000, 200), (2000, 20)):
        boxes1, boxes2 = clustered_boxes(rows).to(device), spread_boxes(columns, seed=3).to(device)
        yield from _beside(f"{rows} x {columns} boxes", function, other, boxes1, boxes2)


def _loss_races(device: torch.device) -> Iterator[Race]:
    vision = torchvision()
    other = vision.ops.generalized_box_iou_loss if vision else None
    boxes1, boxes2 = clustered_boxes(20000).to(device), clustered_boxes(20000, seed=5).to(device)
    yield from _beside("20000 boxes", ops.generalized_box_iou_loss, other, boxes1, boxes2)


def _beside(case: str, function: Any, other: Any, boxes1: Tensor, boxes2: Tensor) -> Iterator[Race]:
    peers: dict[str, Work] = {"torchvision": partial(other, boxes1, boxes2)} if other else {}
    yield Race(case, partial(function, boxes1, boxes2), peers)
    boxes1 = boxes1.clone().requires_grad_()
    if other:
        peers = {"torchvision": gradient_of(partial(other, boxes1, boxes2), [boxes1])}
    ours = gradient_of(partial(function, boxes1, boxes2), [boxes1])
    yield Race(f"{case}, backward", ours, peers, tolerance=1e-5)


def races_of(name: str) -> Callable[[torch.device], Iterator[Race]]:
    """What a function that compares all pairs, or the loss, is timed on."""
    return _loss_races if name.endswith("loss") else partial(_races, name)
