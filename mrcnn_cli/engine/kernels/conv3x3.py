"""conv3x3: checked on small maps, raced on the maps of a ResNet-50 with a pyramid, 800 x 1344 pixels."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from mrcnn_cli.engine.kernels.check import Check
from mrcnn_cli.engine.kernels.race import Race, gradient_of
from mrcnn_cli.ops import conv3x3, reference

# images, channels, height, width: two stages of the backbone, two levels of the pyramid, the mask head
RACED = ((1, 64, 200, 336), (1, 256, 50, 84), (1, 256, 200, 336), (1, 256, 25, 42), (100, 256, 14, 14))


def checks() -> Iterator[Check]:
    random = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, dtype=torch.float64, generator=random)

    for height, width in ((4, 6), (3, 5)):
        values = (normal(2, 3, height, width), normal(5, 3, 3, 3) / 5, normal(5), normal(2, 5, height, width))
        for relu in (False, True):
            yield Check(
                f"{height} x {width} pixels{', ReLU' if relu else ''}",
                partial(conv3x3, relu=relu),
                partial(reference.conv3x3, relu=relu),
                values,
                differentiable=True,
            )


def races(device: torch.device) -> Iterator[Race]:
    """Against PyTorch's own layer, channels last; backward is the gradient of the input and of the weights."""
    random = torch.Generator().manual_seed(1)
    for images, channels, height, width in RACED:
        input = torch.randn(images, channels, height, width, generator=random).to(device)
        weight = (torch.randn(channels, channels, 3, 3, generator=random) / channels**0.5 / 3).to(device)
        for backward in (False, True):
            leaves = [input.contiguous(memory_format=torch.channels_last), weight.clone()]
            for leaf in leaves:
                leaf.requires_grad_(backward)
            ours, theirs = partial(conv3x3, *leaves), partial(functional.conv2d, *leaves, padding=1)
            yield Race(
                f"{'backward' if backward else 'forward'}, {images} x {channels} x {height} x {width}, NHWC",
                gradient_of(ours, leaves) if backward else ours,
                {"plain": gradient_of(theirs, leaves) if backward else theirs},
                1e-4,
            )
