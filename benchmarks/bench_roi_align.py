"""RoIAlign over a feature pyramid, beside torchvision.ops.MultiScaleRoIAlign.

Maps P2-P5 of an 800 x 1344 image with 256 channels; boxes as a detector proposes them. Ours is timed on channels-last
maps unless a case says otherwise; torchvision always gets contiguous float32 maps, on which it is fastest: it would
copy others first, and knows no bfloat16.
"""

import torch
import torchvision
from side_by_side import Case, Work, main
from torch import Tensor

from mrcnn_cli.ops import multilevel_roi_align

SCALES = [1 / 4, 1 / 8, 1 / 16, 1 / 32]
HEIGHT, WIDTH, CHANNELS = 800, 1344, 256


def proposals(count: int) -> Tensor:
    """Boxes from 20 to 700 pixels, evenly spread on a logarithmic scale."""
    random = torch.Generator().manual_seed(0)
    size = torch.exp(torch.rand(count, generator=random) * 4 + 3).clamp(max=700)
    aspect = torch.exp(torch.rand(count, generator=random) - 0.5)
    sides = torch.stack([size * aspect, size / aspect], 1)
    limit = torch.tensor([float(WIDTH), float(HEIGHT)])
    center = torch.rand(count, 2, generator=random) * limit
    low = torch.minimum((center - sides / 2).clamp(min=0), limit - 4)
    return torch.cat([low, torch.maximum(torch.minimum(center + sides / 2, limit), low + 4)], 1)


def pyramid(device: torch.device) -> list[Tensor]:
    random = torch.Generator().manual_seed(1)
    sizes = [(round(HEIGHT * scale), round(WIDTH * scale)) for scale in SCALES]
    return [torch.randn(1, CHANNELS, *size, generator=random).to(device) for size in sizes]


def pooling(
    name: str,
    count: int,
    size: int,
    ratio: int,
    *,
    backward: bool = False,
    contiguous: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Case:
    def make(device: torch.device) -> tuple[Work, Work]:
        # The same rounded numbers for both, so that only the arithmetic can differ.
        rounded = [map.to(dtype) for map in pyramid(device)]
        memory_format = torch.contiguous_format if contiguous else torch.channels_last
        maps = [map.to(memory_format=memory_format).requires_grad_(backward) for map in rounded]
        their_maps = [map.float().contiguous().requires_grad_(backward) for map in rounded]
        boxes = proposals(count).to(device)
        pooler = torchvision.ops.MultiScaleRoIAlign([str(level) for level in range(len(maps))], size, ratio)

        def ours() -> Tensor:
            return multilevel_roi_align(maps, [boxes], size, SCALES, ratio)

        def theirs() -> Tensor:
            return pooler({str(level): map for level, map in enumerate(their_maps)}, [boxes], [(HEIGHT, WIDTH)])

        return (gradient(ours, maps), gradient(theirs, their_maps)) if backward else (ours, theirs)

    tolerance = {torch.float32: 2e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}[dtype]
    return Case(name, make, tolerance * (10 if backward else 1))  # a pixel's gradient sums over dozens of bins


def gradient(work: Work, maps: list[Tensor]) -> Work:
    """The backward pass alone: the forward pass is done once, beforehand."""
    result = work()
    random = torch.Generator().manual_seed(2)
    weights = torch.empty_like(result).copy_(torch.randn(result.shape, generator=random))
    return lambda: torch.autograd.grad(result, maps, weights, retain_graph=True)


CASES = [
    pooling("forward 7x7, 2 samples, 500 boxes", 500, 7, 2),
    pooling("forward 7x7, 2 samples, 500 boxes, bfloat16", 500, 7, 2, dtype=torch.bfloat16),
    pooling("forward 7x7, 2 samples, 500 boxes, contiguous", 500, 7, 2, contiguous=True),
    pooling("forward 7x7, adaptive, 500 boxes", 500, 7, 0),
    pooling("forward 14x14, 2 samples, 500 boxes", 500, 14, 2),
    pooling("backward 7x7, 2 samples, 500 boxes", 500, 7, 2, backward=True),
    pooling("backward 7x7, 2 samples, 500 boxes, bfloat16", 500, 7, 2, backward=True, dtype=torch.bfloat16),
    pooling("backward 7x7, 2 samples, 500 boxes, contiguous", 500, 7, 2, backward=True, contiguous=True),
    pooling("backward 14x14, 2 samples, 500 boxes", 500, 14, 2, backward=True),
]

if __name__ == "__main__":
    main(__doc__.splitlines()[0], CASES)
