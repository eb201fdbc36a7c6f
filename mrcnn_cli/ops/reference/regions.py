"""RoI max pooling and position-sensitive pooling, bin by bin."""

import math

import torch
from torch import Tensor

from mrcnn_cli.ops.reference.roi_align import _mean, _samples


def roi_pool(input: Tensor, boxes: Tensor, output_size: tuple[int, int], spatial_scale: float = 1.0) -> Tensor:
    """The largest number of each bin, [R, C, height, width] float64; differentiable in `input`."""
    map = input.double()
    channels, rows, columns = map.shape[1:]
    height, width = output_size
    pooled = []
    for image, *box in boxes.double().tolist():
        ys = _whole_pixels(box[1], box[3], spatial_scale, height, rows, 1)
        xs = _whole_pixels(box[0], box[2], spatial_scale, width, columns, 1)
        bins = []
        for y in ys:
            for x in xs:
                pixels = map[int(image), :, y.start : y.stop, x.start : x.stop].flatten(1)
                bins.append(pixels.max(1).values if pixels.numel() else map.new_zeros(channels))
        pooled.append(torch.stack(bins, 1).reshape(-1, height, width))
    return torch.stack(pooled) if pooled else map.new_zeros((0, channels, height, width))


def ps_roi_pool(input: Tensor, boxes: Tensor, output_size: tuple[int, int], spatial_scale: float = 1.0) -> Tensor:
    """The mean of each bin in its own channel, [R, C / bins, height, width] float64; differentiable in `input`."""
    rows, columns = input.shape[2:]

    def bin_of(planes: Tensor, box: list[float], y: int, x: int) -> Tensor:
        # the last row and column of pixels are never pooled, as in the paper's code
        ys = _whole_pixels(box[1], box[3], spatial_scale, output_size[0], rows - 1, 0)[y]
        xs = _whole_pixels(box[0], box[2], spatial_scale, output_size[1], columns - 1, 0)[x]
        pixels = planes[:, ys.start : ys.stop, xs.start : xs.stop].flatten(1)
        return pixels.mean(1) if pixels.numel() else planes.new_zeros(len(planes))

    return _position_sensitive(input, boxes, output_size, bin_of)


def ps_roi_align(
    input: Tensor,
    boxes: Tensor,
    output_size: tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
) -> Tensor:
    """The mean of each bin's samples in its own channel, float64; differentiable in `input`."""

    def bin_of(planes: Tensor, box: list[float], y: int, x: int) -> Tensor:
        ys = _samples(box[1], box[3], spatial_scale, output_size[0], sampling_ratio, True)[y]
        xs = _samples(box[0], box[2], spatial_scale, output_size[1], sampling_ratio, True)[x]
        return _mean(planes, ys, xs)

    return _position_sensitive(input, boxes, output_size, bin_of)


def _position_sensitive(input: Tensor, boxes: Tensor, output_size: tuple[int, int], bin_of) -> Tensor:
    map = input.double()
    height, width = output_size
    out = map.shape[1] // (height * width)
    pooled = []
    for image, *box in boxes.double().tolist():
        bins = []
        for y in range(height):
            for x in range(width):
                planes = map[int(image), y * width + x :: height * width]  # one for each channel that comes out
                bins.append(bin_of(planes, box, y, x))
        pooled.append(torch.stack(bins, 1).reshape(out, height, width))
    return torch.stack(pooled) if pooled else map.new_zeros((0, out, height, width))


def _whole_pixels(low: float, high: float, scale: float, bins: int, limit: int, included: int) -> list[range]:
    """The pixels of each bin along one axis; the last one is `included` (1) or not (0)."""
    if not (math.isfinite(low) and math.isfinite(high)) or limit <= 0:
        return [range(0)] * bins
    start, end = _rounded(low * scale), _rounded(high * scale)
    size = max(end - start + included, 1) / bins
    edges = [(math.floor(bin * size) + start, math.ceil((bin + 1) * size) + start) for bin in range(bins)]
    return [range(min(max(first, 0), limit), min(max(last, 0), limit)) for first, last in edges]


def _rounded(value: float) -> int:
    return int(math.copysign(math.floor(abs(value) + 0.5), value))
