"""Deformable convolution, number by number."""

import math

import torch
from torch import Tensor


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    mask: Tensor | None = None,
) -> Tensor:
    """Each output pixel sums its sampling points, each point its channels; [N, C_out, H_out, W_out] float64."""
    images, channels, _, _ = input.shape
    out_channels, group_channels, rows, columns = weight.shape
    outs = out_channels // (channels // group_channels)
    shared = channels // (offset.shape[1] // (2 * rows * columns))  # channels that share their points
    maps, weights = input.double(), weight.double()
    offsets = offset.double().tolist()
    masks = None if mask is None else mask.double().tolist()
    result = torch.zeros(images, out_channels, *offset.shape[2:], dtype=torch.float64)
    if bias is not None:
        result += bias.double()[:, None, None]
    for image in range(images):
        for y in range(offset.shape[2]):
            for x in range(offset.shape[3]):
                for row in range(rows):
                    for column in range(columns):
                        for channel in range(channels):
                            point = channel // shared * rows * columns + row * columns + column
                            down = y * stride[0] - padding[0] + row * dilation[0] + offsets[image][2 * point][y][x]
                            right = (
                                x * stride[1] - padding[1] + column * dilation[1] + offsets[image][2 * point + 1][y][x]
                            )
                            value = _bilinear(maps[image, channel], down, right)
                            if masks is not None:
                                value = value * masks[image][point][y][x]
                            group, within = divmod(channel, group_channels)
                            taken = slice(group * outs, (group + 1) * outs)
                            result[image, taken, y, x] += weights[taken, within, row, column] * value
    return result


def _bilinear(map: Tensor, y: float, x: float) -> Tensor:
    """The map between its pixels; around it there are zeros."""
    height, width = map.shape
    if not (-1 < y < height and -1 < x < width):
        return map.new_zeros(())
    top, left = math.floor(y), math.floor(x)
    value = map.new_zeros(())
    for row, row_share in ((top, top + 1 - y), (top + 1, y - top)):
        for column, column_share in ((left, left + 1 - x), (left + 1, x - left)):
            if 0 <= row < height and 0 <= column < width:
                value = value + row_share * column_share * map[row, column]
    return value
