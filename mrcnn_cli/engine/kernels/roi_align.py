"""roi_align and multilevel_roi_align: checked on small maps, raced on a pyramid of 800 x 1344 pixels."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from mrcnn_cli.engine.kernels.check import Check
from mrcnn_cli.engine.kernels.inputs import IMAGE, SCALES, clustered_boxes, pyramid, spread_boxes
from mrcnn_cli.engine.kernels.race import Race, Work, gradient_of, torchvision
from mrcnn_cli.ops import multilevel_roi_align, reference, roi_align

CHANNELS, REGIONS = 256, 512


def _small() -> tuple[list[Tensor], Tensor]:
    random = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, 3, size, size + 2, dtype=torch.float64, generator=random) for size in (12, 6)]
    rois = torch.tensor(
        [[0, 1.3, 2.1, 30.7, 22.9], [1, -6.0, -4.0, 14.0, 9.0], [1, 20.0, 20.0, 90.0, 70.0], [0, 7.0, 7.0, 7.5, 7.2]]
    )
    return maps, rois


def checks() -> Iterator[Check]:
    maps, rois = _small()
    for aligned in (True, False):
        for ratio in (2, 0):
            yield Check(
                f"{'aligned' if aligned else 'not aligned'}, {ratio or 'adaptive'} samples",
                lambda x, a=aligned, r=ratio: roi_align(x, rois.to(x.device, _boxes_type(x)), (3, 2), 0.25, r, a),
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
            [x, y], _by_image(rois.to(x.device, _boxes_type(x))), (2, 2), scales, 2, True, 40, 3
        ),
        lambda x, y: reference.multilevel_roi_align([x, y], rois, (2, 2), scales, 2, True, 40, 3),
        (maps[0], maps[1]),
        differentiable=True,
    )


def _boxes_type(values: Tensor) -> torch.dtype:
    """Boxes beside half-precision features stay float32."""
    return torch.float64 if values.dtype == torch.float64 else torch.float32


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


def multilevel_races(device: torch.device) -> Iterator[Race]:
    """Four levels, against torchvision's pooler on contiguous maps, on which it is fastest."""
    vision = torchvision()
    layouts = (("NHWC", torch.channels_last), ("NCHW", torch.contiguous_format))
    for layout, form in layouts:
        for name, boxes in (("clustered", clustered_boxes(REGIONS)), ("spread", spread_boxes(REGIONS))):
            if layout == "NCHW" and name == "spread":
                continue
            for size in (7, 14):
                for backward in (False, True):
                    maps = pyramid(CHANNELS, device)
                    mine = [map.to(memory_format=form).requires_grad_(backward) for map in maps]
                    theirs = [map.requires_grad_(backward) for map in maps]
                    cut = boxes.to(device)
                    ours = partial(multilevel_roi_align, mine, [cut], size, SCALES, 2)
                    peers: dict[str, Work] = {}
                    if vision:
                        pooler = vision.ops.MultiScaleRoIAlign([str(level) for level in range(len(maps))], size, 2)
                        named = {str(level): map for level, map in enumerate(theirs)}
                        peers["torchvision"] = partial(pooler, named, [cut], [IMAGE])
                    yield _race(ours, peers, mine, theirs, size, f"{name}, {layout}", backward=backward)


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
    pooled = REGIONS * CHANNELS * size**2 * 4
    moved = pooled
    if backward:
        moved += sum(map.numel() for map in mine) * 4  # every gradient is written
        ours = gradient_of(ours, mine)
        peers = {peer: gradient_of(work, theirs) for peer, work in peers.items()}
    direction = "backward" if backward else "forward"
    # of a pixel's gradient, which sums over dozens of bins
    return Race(f"{direction} {size}x{size}, {REGIONS} {case}", ours, peers, 1e-4, bytes=moved)


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
