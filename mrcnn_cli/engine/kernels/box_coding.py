"""encode, decode and clip_boxes: checked with the weights of Fast R-CNN's box head, raced on a pyramid's anchors."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from mrcnn_cli.engine.kernels.check import Check
from mrcnn_cli.engine.kernels.inputs import pyramid_anchors
from mrcnn_cli.engine.kernels.race import Race, Work, torchvision
from mrcnn_cli.ops import clip_boxes, decode, encode, reference

WEIGHTS = (10.0, 10.0, 5.0, 5.0)


def _boxes() -> tuple[Tensor, Tensor]:
    anchors = torch.tensor([[0.0, 0.0, 10.0, 20.0], [5.0, 5.0, 35.0, 25.0]], dtype=torch.float64)
    return anchors + torch.tensor([[1.0, -2.0, 3.0, 4.0]], dtype=torch.float64), anchors


def encode_checks() -> Iterator[Check]:
    boxes, anchors = _boxes()
    yield Check(
        "weights 10, 10, 5, 5",
        lambda x: encode(x, anchors.to(x), WEIGHTS),
        lambda x: reference.encode(x, anchors, WEIGHTS),
        (boxes,),
        differentiable=True,
    )


def decode_checks() -> Iterator[Check]:
    boxes, anchors = _boxes()
    yield Check(
        "weights 10, 10, 5, 5",
        lambda x: decode(x, anchors.to(x), WEIGHTS),
        lambda x: reference.decode(x, anchors, WEIGHTS),
        (reference.encode(boxes, anchors, WEIGHTS),),
        differentiable=True,
    )


def clip_checks() -> Iterator[Check]:
    boxes, _ = _boxes()
    yield Check(
        "an image of 23.5 x 29.5",
        lambda x: clip_boxes(x, (23.5, 29.5)),
        lambda x: reference.clip_boxes(x, (23.5, 29.5)),
        (boxes,),
        exact=True,
        differentiable=True,
    )


def _moved(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Anchors, deltas and the boxes that these make of them."""
    anchors = pyramid_anchors().to(device)
    deltas = torch.randn(anchors.shape, generator=torch.Generator().manual_seed(0)).to(device)
    return anchors, deltas, decode(deltas, anchors, WEIGHTS)


def encode_races(device: torch.device) -> Iterator[Race]:
    anchors, _, boxes = _moved(device)
    peers: dict[str, Work] = {}
    if vision := torchvision():
        peers["torchvision"] = partial(vision.models.detection._utils.BoxCoder(WEIGHTS).encode_single, boxes, anchors)
    ours = partial(encode, boxes, anchors, WEIGHTS)
    yield Race(f"{len(anchors)} boxes", ours, peers, tolerance=1e-4, bytes=3 * anchors.numel() * 4)


def decode_races(device: torch.device) -> Iterator[Race]:
    anchors, deltas, _ = _moved(device)
    vision = torchvision()
    coder = vision.models.detection._utils.BoxCoder(WEIGHTS) if vision else None
    peers: dict[str, Work] = {"torchvision": partial(coder.decode_single, deltas, anchors)} if coder else {}
    exact = 0.0 if device.type == "cpu" else 1e-6
    ours = partial(decode, deltas, anchors, WEIGHTS)
    yield Race(f"{len(anchors)} boxes", ours, peers, tolerance=exact, bytes=3 * anchors.numel() * 4)
    few, many = anchors[::217], deltas[: 80 * len(anchors[::217])].reshape(-1, 80 * 4)
    peers = {"torchvision": lambda: coder.decode_single(many, few).reshape(len(few), 80, 4)} if coder else {}
    ours = partial(decode, many.reshape(len(few), 80, 4), few[:, None], WEIGHTS)
    yield Race(f"{len(few)} boxes of 80 classes", ours, peers, tolerance=exact, bytes=2 * many.numel() * 4)


def clip_races(device: torch.device) -> Iterator[Race]:
    anchors, _, _ = _moved(device)
    vision = torchvision()
    peers: dict[str, Work] = {}
    if vision:
        peers["torchvision"] = partial(vision.ops.clip_boxes_to_image, anchors, (800, 1088))
    ours = partial(clip_boxes, anchors, (800, 1088))
    yield Race(f"{len(anchors)} boxes", ours, peers, bytes=2 * anchors.numel() * 4)
