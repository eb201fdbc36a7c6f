"""roi_pool, ps_roi_align and ps_roi_pool: checked on small maps, raced on maps of stride 16."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mrcnn_cli.engine.kernels.check import Check
from mrcnn_cli.engine.kernels.inputs import boxes_type, few_rois, spread_boxes
from mrcnn_cli.engine.kernels.race import Race, Work, gradient_of, torchvision
from mrcnn_cli.ops import ps_roi_align, ps_roi_pool, reference, roi_pool

STRIDE = 16
Pool = Callable[..., Tensor]


def _small(channels: int) -> Tensor:
    """Numbers at least an eighth apart, so that central differences change no maximum."""
    count = 2 * channels * 8 * 9
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).double()
    return (order / 8 - count / 16).reshape(2, channels, 8, 9)


def _check(case: str, function: Pool, loop: Pool, channels: int, scale: float, **options: Any) -> Check:
    rois = few_rois()
    map = _small(channels) * scale
    return Check(
        case,
        lambda x: function(x, rois.to(x.device, boxes_type(x)), (4, 2), 0.25, **options),
        lambda x: loop(x, rois, (4, 2), 0.25, **options),
        (map,),
        differentiable=True,
    )


def checks() -> Iterator[Check]:
    yield _check("4 x 2 bins", roi_pool, reference.roi_pool, 3, 1.0)


def ps_roi_align_checks() -> Iterator[Check]:
    for ratio in (2, 0):
        yield _check(
            f"4 x 2 bins, {ratio or 'adaptive'} samples",
            ps_roi_align,
            reference.ps_roi_align,
            16,
            0.01,
            sampling_ratio=ratio,
        )


def ps_roi_pool_checks() -> Iterator[Check]:
    yield _check("4 x 2 bins", ps_roi_pool, reference.ps_roi_pool, 16, 0.01)


def races(device: torch.device) -> Iterator[Race]:
    """The maps of a pyramid's stride 16 and of a ResNet-50's fourth stage, inside Faster R-CNN."""
    vision = torchvision()
    theirs = vision.ops.roi_pool if vision else None
    for channels, count in ((256, 1000), (1024, 500)):
        yield from _races(roi_pool, theirs, device, (50, 68), channels, count)


def ps_roi_align_races(device: torch.device) -> Iterator[Race]:
    """R-FCN on 20 classes and the background."""
    vision = torchvision()
    theirs = partial(vision.ops.ps_roi_align, sampling_ratio=2) if vision else None
    yield from _races(partial(ps_roi_align, sampling_ratio=2), theirs, device, (38, 63), 21 * 49, 300)


def ps_roi_pool_races(device: torch.device) -> Iterator[Race]:
    vision = torchvision()
    theirs = vision.ops.ps_roi_pool if vision else None
    yield from _races(ps_roi_pool, theirs, device, (38, 63), 21 * 49, 300, inside=True)


def _races(
    ours: Pool,
    theirs: Pool | None,
    device: torch.device,
    size: tuple[int, int],
    channels: int,
    count: int,
    inside: bool = False,
) -> Iterator[Race]:
    """Forward and backward, in both memory formats; torchvision's map is contiguous, as it wants it."""
    map = torch.randn(1, channels, *size, generator=torch.Generator().manual_seed(1)).to(device)
    limits = (size[0] * STRIDE, size[1] * STRIDE)
    if inside:  # torchvision's gradient of ps_roi_pool is wrong at the last row and column
        limits = (limits[0] - 2 * STRIDE, limits[1] - 2 * STRIDE)
    boxes = spread_boxes(count, limits, 32, 512).to(device)
    rois = torch.cat([torch.zeros_like(boxes[:, :1]), boxes], 1)
    for layout, form in (("NHWC", torch.channels_last), ("NCHW", torch.contiguous_format)):
        for step in ("forward", "forward for backward", "backward"):
            if step == "forward for backward" and ours is not roi_pool:
                continue  # the others keep nothing for it
            mine = map.to(memory_format=form).clone(memory_format=torch.preserve_format)
            mine.requires_grad_(step != "forward")
            work: Work = partial(ours, mine, rois, 7, 1 / STRIDE)
            peers: dict[str, Work] = {}
            if theirs is not None:
                other = map.clone().requires_grad_(step != "forward")
                peers["torchvision"] = partial(theirs, other, rois, 7, 1 / STRIDE)
            pooled = rois.shape[0] * 49 * 4 * (channels if ours is roi_pool else channels // 49)
            moved = pooled + map.numel() * 4
            if step == "backward":
                work = gradient_of(work, [mine])
                peers = {peer: gradient_of(task, [other]) for peer, task in peers.items()}
            if ours is roi_pool and step != "forward":
                moved += pooled  # where each number was found
            yield Race(
                f"{step} 7x7, {count} on {channels} x {size[0]} x {size[1]}, {layout}", work, peers, 1e-5, bytes=moved
            )
