"""rpn_proposals: checked on small pyramids, raced on the five levels of one image."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mrcnn_cli.engine.kernels.check import Check
from mrcnn_cli.engine.kernels.race import Race, Work, torchvision
from mrcnn_cli.ops import reference, rpn_candidates, rpn_proposals

RATIOS = (0.5, 1.0, 2.0)


def _pyramid(shapes: list[tuple[int, int]], images: int = 1) -> tuple[list[Tensor], list[Tensor]]:
    """Logits and deltas of each level, float32; few anchors stand out, as after training."""
    random = torch.Generator().manual_seed(3)
    logits = [2 * torch.randn(images, 3, *shape, generator=random) - 3 for shape in shapes]
    return logits, [0.3 * torch.randn(images, 12, *shape, generator=random) for shape in shapes]


def _small() -> tuple[tuple[Tensor, ...], dict[str, Any]]:
    logits, deltas = _pyramid([(12, 16), (6, 8)], images=2)
    options = {
        "image_sizes": [(96, 110), (80, 128)],
        "sizes": [(16.0,), (32.0,)],
        "ratios": RATIOS,
        "strides": (8, (16.0, 15.5)),
        "pre_nms_top_n": 60,
        "offset": 0.5,
    }
    return tuple(map.double() for map in (*logits, *deltas)), options


def candidates_checks() -> Iterator[Check]:
    values, options = _small()

    def joined(op: Any, *maps: Tensor) -> Tensor:
        boxes, logits, groups = op(list(maps[:2]), list(maps[2:]), **options)
        return torch.cat([boxes, logits.nan_to_num(neginf=0.0)[..., None], groups[..., None].to(boxes)], -1)

    yield Check("two levels", partial(joined, rpn_candidates), partial(joined, reference.rpn_candidates), values)


def checks() -> Iterator[Check]:
    values, options = _small()

    def joined(op: Any, *maps: Tensor) -> Tensor:
        boxes, logits = op(list(maps[:2]), list(maps[2:]), nms_threshold=0.6, post_nms_top_n=50, **options)
        return torch.cat([torch.cat(boxes), torch.cat(logits)[:, None]], 1)

    yield Check("two levels", partial(joined, rpn_proposals), partial(joined, reference.rpn_proposals), values)


def races(device: torch.device) -> Iterator[Race]:
    vision = torchvision()
    sizes = [(side,) for side in (32.0, 64.0, 128.0, 256.0, 512.0)]
    for size in ((800, 1344), (800, 1088)):
        shapes = [(-(-size[0] // stride), -(-size[1] // stride)) for stride in (4, 8, 16, 32, 64)]
        # The distances of the cells are torchvision's, which are those of the maps' and the image's sizes.
        strides = [(size[0] // height, size[1] // width) for height, width in shapes]
        count = sum(3 * height * width for height, width in shapes) // 1000
        for layout, form in (("NCHW", torch.contiguous_format), ("NHWC", torch.channels_last)):
            logits, deltas = (
                [map.to(device).contiguous(memory_format=form) for map in maps] for maps in _pyramid(shapes)
            )
            ours = partial(rpn_proposals, logits, deltas, [size], sizes, RATIOS, strides, rounded=True)
            peers: dict[str, Work] = {}
            if vision:
                peers["torchvision"] = _torchvisions(vision, logits, deltas, size, sizes)
            case = f"{count}k anchors of {size[0]} x {size[1]} to 1000 proposals, {layout}"
            yield Race(case, ours, peers, 1e-6, answer=lambda result: result[0])


def _torchvisions(
    vision: Any, logits: list[Tensor], deltas: list[Tensor], size: tuple[int, int], sizes: list[tuple[float]]
) -> Work:
    """Its region proposal network on the outputs of a head, which is not timed: anchors, decoding and filtering."""
    detection = vision.models.detection
    network = detection.rpn.RegionProposalNetwork(
        detection.anchor_utils.AnchorGenerator(tuple(sizes), (RATIOS,) * len(sizes)),
        lambda features: (logits, deltas),
        *(0.7, 0.3, 256, 0.5),
        {"training": 2000, "testing": 1000},
        {"training": 2000, "testing": 1000},
        0.7,
    ).eval()
    images = detection.image_list.ImageList(torch.empty(1, 3, *size, device=logits[0].device), [size])
    features = {str(level): map for level, map in enumerate(logits)}
    return torch.no_grad()(lambda: network(images, features))
