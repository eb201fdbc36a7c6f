"""roi_align and multilevel_roi_align: checked on small maps, raced on a pyramid of 800 x 1344 pixels."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mrcnn_cli.engine.kernels.check import Check
from mrcnn_cli.engine.kernels.inputs import IMAGE, SCALES, boxes_type, clustered_boxes, few_rois, pyramid, spread_boxes
from mrcnn_cli.engine.kernels.race import Race, Work, gradient_of, torchvision
from mrcnn_cli.ops import multilevel_roi_align, reference, roi_align

CHANNELS, REGIONS = 256, 512


def _small() -> tuple[list[Tensor], Tensor]:
    random = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, 3, size, size + 2, dtype=torch.float64, generator=random) for size in (12, 6)]
    rois = few_rois()
    return maps, rois


def checks() -> Iterator[Check]:
    maps, rois = _small()
    for aligned in (True, False):
        for ratio in (2, 0):
            yield Check(
                f"{'aligned' if aligned else 'not aligned'}, {ratio or 'adaptive'} samples",
                lambda x, a=aligned, r=ratio: roi_align(x, rois.to(x.device, boxes_type(x)), (3, 2), 0.25, r, a),
                lambda x, a=aligned, r=ratio: reference.roi_align(x, rois, (3, 2), 0.25, r, a),
                (maps[0],),
                differentiable=True,
            )


def multilevel_checks() -> Iterator[Check]:
    maps, rois = _small()
    scales = (0.25, 0.125)
    rois = rois[rois[:, 0].argsort(stable=True)]  # lists by image come back in this order
    yield Check(
        "two levels",
        lambda x, y: multilevel_roi_align(
            [x, y], _by_image(rois.to(x.device, boxes_type(x))), (2, 2), scales, 2, True, 40, 3
        ),
        lambda x, y: reference.multilevel_roi_align([x, y], rois, (2, 2), scales, 2, True, 40, 3),
        (maps[0], maps[1]),
        differentiable=True,
    )


def _by_image(rois: Tensor) -> list[Tensor]:
    """[R, 5] as a list by image."""
    return [rois[rois[:, 0] == image, 1:] for image in range(int(rois[:, 0].max()) + 1)]


def races(device: torch.device) -> Iterator[Race]:
    """One level, with the half-pixel shift."""
    vision = torchvision()
    boxes = spread_boxes(REGIONS).to(device)
    rois = torch.cat([torch.zeros_like(boxes[:, :1]), boxes], 1)
    for layout, form in (("NHWC", torch.channels_last), ("NCHW", torch.contiguous_format)):
        for backward in (False, True):
            map = pyramid(CHANNELS, device)[1]
            mine = map.to(memory_format=form).requires_grad_(backward)
            theirs = map.clone().requires_grad_(backward)
            peers: dict[str, Work] = {"plain": partial(_plain_roi_align, theirs, rois, 7, SCALES[1], 2)}
            if vision:
                peers["torchvision"] = partial(vision.ops.roi_align, theirs, rois, 7, SCALES[1], 2, True)
            ours = partial(roi_align, mine, rois, 7, SCALES[1], 2, True)
            yield _race(ours, peers, [mine], [theirs], 7, f"spread, {layout}", backward=backward)


@dataclass(frozen=True)
class _Course:
    """What a race over the pyramid varies."""

    layout: str = "NHWC"
    boxes: str = "clustered"
    size: int = 7
    ratio: int = 2
    dtype: torch.dtype = torch.float32


def multilevel_races(device: torch.device) -> Iterator[Race]:
    """Four levels, against torchvision's pooler on contiguous float32 maps, on which it is fastest."""
    sizes = [
        _Course(layout, boxes, size)
        for layout in ("NHWC", "NCHW")
        for boxes in ("clustered", "spread")
        for size in (7, 14)
    ]
    for course in (*sizes, _Course(ratio=0), _Course(dtype=torch.bfloat16)):
        for backward in (False, True):
            yield _multilevel_race(course, device, backward=backward)
    if device.type == "cuda":
        for boxes in ("clustered", "spread"):
            for size in (7, 14):
                yield _race_with_atomics(_Course(boxes=boxes, size=size), device)


def _multilevel_race(course: _Course, device: torch.device, *, backward: bool) -> Race:
    maps, boxes = _pyramid(course, device), _boxes(course, device)
    mine = [map.requires_grad_(backward) for map in maps]
    theirs = [map.detach().float().contiguous().requires_grad_(backward) for map in maps]
    ours = partial(multilevel_roi_align, mine, [boxes], course.size, SCALES, course.ratio)
    peers: dict[str, Work] = {}
    if vision := torchvision():
        pooler = vision.ops.MultiScaleRoIAlign([str(level) for level in range(len(maps))], course.size, course.ratio)
        peers["torchvision"] = partial(pooler, {str(level): map for level, map in enumerate(theirs)}, [boxes], [IMAGE])
    name = f"{course.boxes}, {course.layout}"
    name += "" if course.ratio else ", adaptive"
    name += "" if course.dtype == torch.float32 else f", {str(course.dtype).removeprefix('torch.')}"
    return _race(ours, peers, mine, theirs, course.size, name, backward=backward)


def _race_with_atomics(course: _Course, device: torch.device) -> Race:
    """Our gradient, the same bits every time, against one with atomic additions: what does that cost?"""
    maps, boxes = _pyramid(course, device), _boxes(course, device)
    rois = torch.cat([torch.zeros_like(boxes[:, :1]), boxes], 1)
    grad = torch.randn(REGIONS, CHANNELS, course.size, course.size, device=device)
    grad = grad.to(memory_format=torch.channels_last)
    sizes = ([map.shape[2] for map in maps], [map.shape[3] for map in maps])
    arguments = (grad, rois, 1, *sizes, SCALES, course.ratio, False, 224.0, 4)
    operators = torch.ops.mrcnn
    return Race(
        f"gradient {course.size}x{course.size}, {REGIONS} {course.boxes}, NHWC",
        partial(operators.roi_align_backward, *arguments, True),
        {"atomic": partial(operators.roi_align_backward_atomic, *arguments)},
        1e-4,
        bytes=grad.nbytes + sum(map.nbytes for map in maps),
    )


def _pyramid(course: _Course, device: torch.device) -> list[Tensor]:
    form = torch.channels_last if course.layout == "NHWC" else torch.contiguous_format
    return [map.to(course.dtype, memory_format=form) for map in pyramid(CHANNELS, device)]


def _boxes(course: _Course, device: torch.device) -> Tensor:
    return (clustered_boxes if course.boxes == "clustered" else spread_boxes)(REGIONS).to(device)


def _race(
    ours: Work,
    peers: dict[str, Work],
    mine: list[Tensor],
    theirs: list[Tensor],
    size: int,
    case: str,
    *,
    backward: bool,
) -> Race:
    moved = REGIONS * CHANNELS * size**2 * mine[0].element_size()
    if backward:
        moved += sum(map.nbytes for map in mine)  # every gradient is written
        ours = gradient_of(ours, mine)
        peers = {peer: gradient_of(work, theirs) for peer, work in peers.items()}
    direction = "backward" if backward else "forward"
    # float32: of a pixel's gradient, which sums over dozens of bins
    tolerance = 1e-4 if mine[0].dtype == torch.float32 else 1e-2
    return Race(f"{direction} {size}x{size}, {REGIONS} {case}", ours, peers, tolerance, bytes=moved)


def _plain_roi_align(x: Tensor, rois: Tensor, size: int, scale: float, ratio: int) -> Tensor:
    """RoIAlign (aligned) with PyTorch's own operators: all samples gathered, mixed and averaged."""
    low, high = rois[:, 1:3] * scale - 0.5, rois[:, 3:5] * scale - 0.5
    steps = (torch.arange(size * ratio, device=x.device) + 0.5) / (size * ratio)
    points = low[:, None] + (high - low)[:, None] * steps[None, :, None]  # [R, size * ratio, x y]
    mixed = x[0].permute(1, 2, 0)
    weights = []
    for axis, length in ((1, x.shape[2]), (0, x.shape[3])):
        position = points[..., axis]
        inside = (position >= -1) & (position <= length)
        position = position.clamp(0, length - 1)
        first = position.floor().long().clamp(max=length - 1)
        second = (first + 1).clamp(max=length - 1)
        rest = position - first
        weights.append((first, second, (1 - rest) * inside, rest * inside))
    result = x.new_zeros(len(rois), size * ratio, size * ratio, x.shape[1])
    for row, row_weight in ((weights[0][0], weights[0][2]), (weights[0][1], weights[0][3])):
        for column, column_weight in ((weights[1][0], weights[1][2]), (weights[1][1], weights[1][3])):
            share = row_weight[:, :, None, None] * column_weight[:, None, :, None]
            result = result + share * mixed[row[:, :, None], column[:, None, :]]
    result = result.view(len(rois), size, ratio, size, ratio, -1).mean((2, 4))
    return result.permute(0, 3, 1, 2)
