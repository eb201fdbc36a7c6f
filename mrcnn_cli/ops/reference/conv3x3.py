"""The convolution of 3x3, number by number."""

import torch
from torch import Tensor


def conv3x3(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, shortcut: Tensor | None = None, relu: bool = False
) -> Tensor:
    """Each output pixel sums its nine neighbours over all channels; [N, C_out, H, W] float64."""
    images, channels, height, width = input.shape
    result = torch.zeros(images, weight.shape[0], height, width, dtype=torch.float64)
    values, filters = input.double().tolist(), weight.double().tolist()
    start = [0.0] * weight.shape[0] if bias is None else bias.double().tolist()
    others = None if shortcut is None else shortcut.double().tolist()
    for image in range(images):
        for out in range(weight.shape[0]):
            for y in range(height):
                for x in range(width):
                    total = start[out]
                    for row in range(max(y - 1, 0), min(y + 2, height)):
                        for column in range(max(x - 1, 0), min(x + 2, width)):
                            for channel in range(channels):
                                tap = filters[out][channel][row - y + 1][column - x + 1]
                                total += values[image][channel][row][column] * tap
                    total += 0.0 if others is None else others[image][out][y][x]
                    result[image, out, y, x] = max(total, 0.0) if relu else total
    return result
