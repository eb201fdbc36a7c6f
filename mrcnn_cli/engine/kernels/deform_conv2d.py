"""deform_conv2d: checked on small maps, raced on the 256 channels of a map of 800 x 1088 pixels at stride 16."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from mrcnn_cli.engine.kernels.check import Check
from mrcnn_cli.engine.kernels.race import Race, Work, gradient_of, torchvision
from mrcnn_cli.ops import deform_conv2d, reference

CHANNELS, SIZE = 256, (50, 68)


def checks() -> Iterator[Check]:
    random = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, dtype=torch.float64, generator=random)

    for name, groups, offset_groups, masked in (("v1", 1, 1, False), ("v2", 1, 1, True), ("v2, groups", 2, 2, True)):
        input, weight, bias = normal(2, 4, 5, 6), normal(2, 4 // groups, 3, 2) / 3, normal(2)
        geometry = {"stride": (2, 1), "padding": (1, 1), "dilation": (1, 2)}
        # Thirty-seconds of pixels, which every type holds: rounding must not move a point over a pixel's border.
        offset = torch.randint(-47, 48, (2, 12 * offset_groups, 3, 6), generator=random).double() / 32
        offset += 1 / 64 * (offset == offset.round())  # at whole pixels the value has a kink
        mask = torch.rand(2, 6 * offset_groups, 3, 6, dtype=torch.float64, generator=random)
        values = (input, offset, weight, bias, mask) if masked else (input, offset, weight, bias)
        for layout, form in (("NCHW", torch.contiguous_format), ("NHWC", torch.channels_last)):
            yield Check(
                f"{name}, {layout}",
                _ordered(deform_conv2d, geometry, form),
                _ordered(reference.deform_conv2d, geometry, form),
                values,
                differentiable=True,
            )


def _ordered(function: Callable[..., Tensor], geometry: dict, form: torch.memory_format) -> Callable[..., Tensor]:
    def call(input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor, mask: Tensor | None = None) -> Tensor:
        return function(input.contiguous(memory_format=form), offset, weight, bias, **geometry, mask=mask)

    return call


def races(device: torch.device) -> Iterator[Race]:
    """The gradients are those of input, offset and weight, and of the mask in v2."""
    vision = torchvision()
    random = torch.Generator().manual_seed(1)
    input = torch.randn(1, CHANNELS, *SIZE, generator=random).to(device)
    weight = (torch.randn(CHANNELS, CHANNELS, 3, 3, generator=random) * 0.02).to(device)
    offset = torch.randn(1, 18, *SIZE, generator=random).to(device)
    mask = torch.rand(1, 9, *SIZE, generator=random).to(device)
    operations = 2 * 9 * CHANNELS * CHANNELS * SIZE[0] * SIZE[1]
    for version, values in (("v1", (input, offset, weight)), ("v2", (input, offset, weight, mask))):
        for layout, form in (("NHWC", torch.channels_last), ("NCHW", torch.contiguous_format)):
            for backward in (False, True):
                ours, mine = _work(deform_conv2d, values, form, backward)
                peers: dict[str, Work] = {}
                if vision:
                    theirs, leaves = _work(vision.ops.deform_conv2d, values, torch.contiguous_format, backward)
                    peers["torchvision"] = gradient_of(theirs, leaves) if backward else theirs
                yield Race(
                    f"{'backward' if backward else 'forward'} {version}, 3x3, {CHANNELS} channels, {layout}",
                    gradient_of(ours, mine) if backward else ours,
                    peers,
                    1e-4,
                    operations=operations * (2 if backward else 1),
                )


def _work(
    function: Callable[..., Tensor], values: tuple[Tensor, ...], form: torch.memory_format, backward: bool
) -> tuple[Work, list[Tensor]]:
    input, *rest = [value.clone() for value in values]
    leaves = [input.contiguous(memory_format=form), *rest]
    for leaf in leaves:
        leaf.requires_grad_(backward)
    offset, weight, *mask = leaves[1:]
    return partial(function, leaves[0], offset, weight, None, 1, 1, 1, mask[0] if mask else None), leaves
