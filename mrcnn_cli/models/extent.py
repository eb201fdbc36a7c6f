"""Maps that are larger than the images ask for, with the results of maps that are not.

A network that is compiled for few sizes takes images that are padded to the next one of them. What a convolution finds
beyond the edge of a map is zero, and a norm takes its statistics of the whole map: so while an extent is entered,
whatever lies beyond it is set to zero after each layer, and statistics are taken of what lies within.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mrcnn_cli.structures import Size


@dataclass(frozen=True, eq=False)  # tensors do not compare to one truth value
class Extent:
    """What counts of a padded input, and of every map that is made of it.

    Attributes:
        limits: [2] int64 rows and columns of the input that count: a tensor, so that all of them share one compilation.
        size: (height, width) of the padded input, a multiple of the stride of each map.
    """

    limits: Tensor
    size: Size

    def inside(self, x: Tensor) -> Tensor:
        """[H, W] bool: which cells of the map [N, C, H, W] count. An odd number of them is halved upwards."""
        (height, width), (rows, columns) = x.shape[-2:], self.limits.unbind()
        row = torch.arange(height, device=x.device) * self.size[0] < rows * height
        column = torch.arange(width, device=x.device) * self.size[1] < columns * width
        return row[:, None] & column


_entered: Extent | None = None


@contextmanager
def entered(extent: Extent) -> Iterator[None]:
    """Layers act as if maps ended there."""
    global _entered
    _entered = extent
    try:
        yield
    finally:
        _entered = None


def cut(x: Tensor) -> Tensor:
    """The map [N, C, H, W] with zeros where there is none."""
    return x if _entered is None else torch.where(_entered.inside(x), x, 0.0)


def mean(x: Tensor) -> Tensor:
    """[N, C, 1, 1] means over the map, which is zero where there is none."""
    if _entered is None:
        return x.mean((2, 3), keepdim=True)
    return x.sum((2, 3), keepdim=True) / _entered.inside(x).sum()


def normalised(norm: Any, x: Tensor) -> Tensor:
    """The map after its norm, a batch or a group norm."""
    if _entered is None or (not isinstance(norm, nn.GroupNorm) and not norm.training):
        return norm(x)
    inside = _entered.inside(x)
    parts, axes, each = x.to(torch.promote_types(x.dtype, torch.float32)), (0, 2, 3), len(x)
    if isinstance(norm, nn.GroupNorm):
        parts, axes, each = parts.unflatten(1, (norm.num_groups, -1)), (2, 3, 4), x.shape[1] // norm.num_groups
    count = inside.sum() * each
    average = torch.where(inside, parts, 0.0).sum(axes, keepdim=True) / count
    centred = torch.where(inside, parts - average, 0.0)
    variance = centred.square().sum(axes, keepdim=True) / count
    if isinstance(norm, nn.modules.batchnorm._BatchNorm):
        _remember(norm, average.flatten(), variance.flatten() * count / (count - 1))
    found = (centred * (variance + norm.eps).rsqrt()).view_as(x)
    return (found * norm.weight[:, None, None] + norm.bias[:, None, None]).to(x.dtype)


@torch.no_grad()
def _remember(norm: Any, average: Tensor, variance: Tensor) -> None:
    """The running statistics after one more batch."""
    norm.running_mean.lerp_(average.to(norm.running_mean), norm.momentum)
    norm.running_var.lerp_(variance.to(norm.running_var), norm.momentum)
    norm.num_batches_tracked.add_(1)


def enlarged(x: Tensor, size: Size) -> Tensor:
    """The map [N, C, H, W] with zeros at the bottom and the right, up to that size; channels last."""
    height, width = x.shape[-2:]
    padded = functional.pad(x, (0, size[1] - width, 0, size[0] - height))
    return padded.contiguous(memory_format=torch.channels_last)
