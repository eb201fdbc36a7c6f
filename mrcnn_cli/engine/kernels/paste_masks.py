"""paste_masks and paste_masks_dense: checked on small images, raced on the hundred detections of a large one."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.nn import functional

from mrcnn_cli.engine.kernels.check import Check
from mrcnn_cli.engine.kernels.inputs import spread_boxes
from mrcnn_cli.engine.kernels.race import Race, torchvision
from mrcnn_cli.ops import paste_masks, paste_masks_dense, reference

SIZE = (800, 1333)
BLOCK = 32  # pixels of a square in which answers are compared
# Of the pixels of a square. Other orders of rounding put single pixels on the other side of the threshold;
# torchvision rounds boxes to whole pixels, which moves outlines by up to one.
ROUNDING, OUTLINES = 4 / BLOCK**2, 0.15


def _blobs(count: int, size: int = 28) -> Tensor:
    """Smooth masks [N, M, M] as a mask head gives them."""
    noise = torch.randn(count, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    smooth = functional.interpolate(noise, (size, size), mode="bicubic", align_corners=True)[:, 0]
    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    return (smooth + 4 - 6 * (x * x + y * y)).sigmoid()


def _decoded(encodings: list[dict[str, Any]]) -> Tensor:
    return torch.from_numpy(coco_mask.decode(encodings)).permute(2, 0, 1)


def _cases() -> Iterator[tuple[str, Tensor, Tensor]]:
    boxes = torch.tensor([[3.2, 4.1, 20.7, 17.9], [-6.0, -3.5, 9.0, 12.0], [15.0, 10.0, 60.0, 50.0], [-9, -9, 50, 40]])
    for size in (1, 7, 28):
        yield (
            f"4 masks {size} x {size}",
            boxes,
            torch.rand(4, size, size, generator=torch.Generator().manual_seed(size)),
        )


def checks() -> Iterator[Check]:
    for case, boxes, masks in _cases():
        yield Check(
            case,
            lambda m, b=boxes: _decoded(paste_masks(m, b.to(m.device), (23, 31))),
            lambda m, b=boxes: reference.paste_masks_dense(m, b, (23, 31)),
            (masks.double(),),
            exact=True,
            dtypes=("float32",),
        )


def dense_checks() -> Iterator[Check]:
    for case, boxes, masks in _cases():
        yield Check(
            case,
            lambda m, b=boxes: paste_masks_dense(m, b.to(m.device), (23, 31)),
            lambda m, b=boxes: reference.paste_masks_dense(m, b, (23, 31)),
            (masks.double(),),
            exact=True,
            dtypes=("float32",),
        )


def races(device: torch.device) -> Iterator[Race]:
    for case, masks, boxes in _detections(device):
        ours = partial(paste_masks, masks, boxes, SIZE)
        yield from _against(case, ours, _encoded, masks, boxes, lambda found: _shares(_decoded(found)))


def dense_races(device: torch.device) -> Iterator[Race]:
    for case, masks, boxes in _detections(device):
        ours = partial(paste_masks_dense, masks, boxes, SIZE)
        yield from _against(case, ours, lambda images: images, masks, boxes, _shares)


def _detections(device: torch.device) -> Iterator[tuple[str, Tensor, Tensor]]:
    boxes = spread_boxes(100, SIZE, 16, 600).to(device)
    noise = torch.rand(100, 28, 28, generator=torch.Generator().manual_seed(1))
    for name, masks in (("smooth", _blobs(100)), ("noisy", noise)):
        yield f"100 {name} masks 28 x 28 into {SIZE[0]} x {SIZE[1]}", masks.to(device), boxes


def _against(
    case: str,
    ours: Callable[[], Any],
    form: Callable[[Tensor], Any],
    masks: Tensor,
    boxes: Tensor,
    answer: Callable[[Any], Tensor],
) -> Iterator[Race]:
    yield Race(case, ours, {"plain": lambda: form(_plain_paste(masks, boxes))}, ROUNDING, answer=answer)
    vision = torchvision()
    if vision:
        paste = vision.models.detection.roi_heads.paste_masks_in_image
        theirs = {"torchvision": lambda: form(paste(masks[:, None], boxes, SIZE)[:, 0] >= 0.5)}
        yield Race(f"{case}, boxes rounded there", ours, theirs, OUTLINES, answer=answer)


def _encoded(images: Tensor) -> list[dict[str, Any]]:
    return [coco_mask.encode(np.asfortranarray(image)) for image in images.cpu().numpy().view(np.uint8)]


def _shares(images: Tensor) -> Tensor:
    """Of the pixels of each square of BLOCK pixels, the share that belongs to the mask."""
    return torch.cat([functional.avg_pool2d(image[None].float(), BLOCK, ceil_mode=True) for image in images])


def _plain_paste(masks: Tensor, boxes: Tensor) -> Tensor:
    """Detectron2's formula with PyTorch's own operators: each mask sampled in the window of its box."""
    height, width = SIZE
    images = torch.zeros(len(masks), *SIZE, dtype=torch.bool, device=masks.device)
    for image, mask, (x1, y1, x2, y2) in zip(images, masks, boxes.tolist(), strict=True):
        left, top = max(int(x1) - 1, 0), max(int(y1) - 1, 0)
        right, bottom = min(int(x2) + 2, width), min(int(y2) + 2, height)
        # half a value's width beyond the box the mask fades to zero; it is below the threshold before the box ends
        x = (torch.arange(left, right, device=masks.device) + 0.5 - x1) / (x2 - x1) * 2 - 1
        y = (torch.arange(top, bottom, device=masks.device) + 0.5 - y1) / (y2 - y1) * 2 - 1
        grid = torch.stack(torch.broadcast_tensors(x[None, :], y[:, None]), -1)
        values = functional.grid_sample(mask[None, None], grid[None], align_corners=False)[0, 0]
        image[top:bottom, left:right] = values >= 0.5
    return images
