"""Position-sensitive RoI pooling: "R-FCN" (Dai et al., 2016), equation 1.

Linear in the input: the backward operator is the transpose of the forward one and the other way round, so gradients of
any order exist. Boxes get no gradient.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mrcnn_cli.ops.regions import empty_map, height_and_width, prefers_channels_last, rois_of


def ps_roi_pool(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
) -> Tensor:
    """The mean of each bin of each box, where every bin reads a channel of its own.

    Values equal torchvision.ops.ps_roi_pool's bit for bit (float32 and float64; half precision, which it lacks on the
    CPU, is that of its float32 rounded once), and so do gradients unless a box reaches the last row or column of the
    map: those belong to no bin, but torchvision's gradient counts them, and is then not the derivative of its values.
    Corners are rounded to whole pixels, boxes are at least a pixel wide and high, a bin without pixels gives 0. A box
    with a coordinate that is NaN or infinite gives zeros.

    Args:
        input: [N, C, H, W] float32, float64, float16 or bfloat16, contiguous or channels last; C is a multiple of
            height x width, and channel (c * height + y) * width + x is what bin y, x of channel c reads. The result has
            its type and memory format.
        boxes: [R, 5] image index, x1, y1, x2, y2, or N tensors [R_i, 4]. In pixels of the image; any floating type,
            computed in float32 (float64 for float64 input).
        output_size: bins per side, or (height, width).
        spatial_scale: pixels of the feature map per pixel of the image.

    Returns:
        [R, C / (height x width), height, width], differentiable in `input`, any number of times.

    Raises:
        RuntimeError: a shape or type does not fit, or (on the CPU) a box lies on an image that is not there. On a GPU
            such a box gives zeros.
    """
    rois = rois_of("ps_roi_pool", boxes, input)
    height, width = height_and_width(output_size)
    return torch.ops.mrcnn.ps_roi_pool(input, rois, float(spatial_scale), height, width)


@torch.library.register_fake("mrcnn::ps_roi_pool")
def _shape(input: Tensor, rois: Tensor, spatial_scale: float, height: int, width: int) -> Tensor:
    size = (rois.shape[0], input.shape[1] // (height * width), height, width)
    return empty_map(input, size, prefers_channels_last(input))


@torch.library.register_fake("mrcnn::ps_roi_pool_backward")
def _backward_shape(
    grad: Tensor, rois: Tensor, spatial_scale: float, images: int, height: int, width: int, channels_last: bool
) -> Tensor:
    channels = grad.shape[1] * grad.shape[2] * grad.shape[3]
    return empty_map(grad, (images, channels, height, width), channels_last)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, rois, ctx.spatial_scale, *_ = inputs
    ctx.save_for_backward(rois)
    ctx.size = (input.shape[0], input.shape[2], input.shape[3])
    ctx.channels_last = prefers_channels_last(input)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    (rois,) = ctx.saved_tensors
    back = torch.ops.mrcnn.ps_roi_pool_backward(grad, rois, ctx.spatial_scale, *ctx.size, ctx.channels_last)
    return back, *[None] * 4


def _save_for_double_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, rois, ctx.spatial_scale, *_ = inputs
    ctx.save_for_backward(rois)
    ctx.size = grad.shape[2:]


def _double_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    (rois,) = ctx.saved_tensors
    return torch.ops.mrcnn.ps_roi_pool(grad, rois, ctx.spatial_scale, *ctx.size), *[None] * 6


torch.library.register_autograd("mrcnn::ps_roi_pool", _backward, setup_context=_save_for_backward)
torch.library.register_autograd(
    "mrcnn::ps_roi_pool_backward", _double_backward, setup_context=_save_for_double_backward
)
