"""What the operators that pool one feature map at boxes have in common: their arguments and memory formats."""

from collections.abc import Sequence

import torch
from torch import Tensor


def rois_of(op: str, boxes: Tensor | Sequence[Tensor], input: Tensor) -> Tensor:
    """Boxes as [R, 5], image index first. Half-precision boxes in a list become float32: it can't hold every index.

    Raises:
        RuntimeError: a list does not hold one [R, 4] per image.
    """
    if isinstance(boxes, Tensor):
        return boxes.detach()
    if input.ndim == 4 and len(boxes) != input.shape[0]:
        raise RuntimeError(f"{op}: boxes must be one [R, 4] per image, got {len(boxes)} for {input.shape[0]}")
    for image, box in enumerate(boxes):
        if box.ndim != 2 or box.shape[1] != 4:
            raise RuntimeError(f"{op}: boxes[{image}] must be [R, 4], got {list(box.shape)}")
    if not boxes:
        return input.new_empty((0, 5), dtype=torch.float32)
    wide = [box if box.dtype == torch.float64 else box.float() for box in boxes]
    index = [torch.full_like(box[:, :1], image) for image, box in enumerate(wide)]
    return torch.cat([torch.cat(index), torch.cat(wide)], 1).detach()


def height_and_width(output_size: int | tuple[int, int]) -> tuple[int, int]:
    """The number of bins along both axes."""
    return (output_size, output_size) if isinstance(output_size, int) else (output_size[0], output_size[1])


def prefers_channels_last(map: Tensor) -> bool:
    """The rule of csrc/regions.h: a map that is both (one channel, one pixel) counts as contiguous."""
    return map.is_contiguous(memory_format=torch.channels_last) and not map.is_contiguous()


def empty_map(like: Tensor, size: tuple[int, ...], channels_last: bool, dtype: torch.dtype | None = None) -> Tensor:
    """What a fake kernel gives: a map without values."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(size, dtype=dtype or like.dtype, device=like.device, memory_format=memory_format)
