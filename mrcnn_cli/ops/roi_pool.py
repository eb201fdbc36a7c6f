"""RoI max pooling: "Fast R-CNN" (Girshick, 2015), section 2.1."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mrcnn_cli.ops.regions import empty_map, height_and_width, prefers_channels_last, rois_of


def roi_pool(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
) -> Tensor:
    """The largest number in each bin of each box, whose corners are rounded to whole pixels.

    Values and gradients equal torchvision.ops.roi_pool's bit for bit (float32 and float64; half precision, which it
    lacks on the CPU, is that of its float32 rounded once). So a number that is NaN is never the largest, a bin with
    nothing above -3.4028235e38 gives that, and a bin without pixels gives 0. Boxes are at least a pixel wide and high.
    A box with a coordinate that is NaN or infinite gives zeros.

    Args:
        input: [N, C, H, W] float32, float64, float16 or bfloat16, contiguous or channels last; the result has its type
            and memory format.
        boxes: [R, 5] image index, x1, y1, x2, y2, or N tensors [R_i, 4]. In pixels of the image; any floating type,
            computed in float32 (float64 for float64 input).
        output_size: bins per side, or (height, width).
        spatial_scale: pixels of the feature map per pixel of the image.

    Returns:
        [R, C, height, width], differentiable in `input`, any number of times.

    Raises:
        RuntimeError: a shape or type does not fit, or (on the CPU) a box lies on an image that is not there. On a GPU
            such a box gives zeros.
    """
    rois = rois_of("roi_pool", boxes, input)
    height, width = height_and_width(output_size)
    # where no gradient will be asked for, no places need to be kept for it
    with_places = torch.is_grad_enabled() and input.requires_grad
    return torch.ops.mrcnn.roi_pool(input, rois, float(spatial_scale), height, width, with_places)[0]


@torch.library.register_fake("mrcnn::roi_pool")
def _shapes(
    input: Tensor, rois: Tensor, spatial_scale: float, height: int, width: int, with_places: bool
) -> tuple[Tensor, Tensor]:
    channels_last = prefers_channels_last(input)
    size = (rois.shape[0], input.shape[1], height, width)
    places = size if with_places else (0, *size[1:])
    return empty_map(input, size, channels_last), empty_map(input, places, channels_last, torch.int32)


@torch.library.register_fake("mrcnn::roi_pool_backward")
def _backward_shape(
    grad: Tensor,
    rois: Tensor,
    places: Tensor,
    spatial_scale: float,
    images: int,
    height: int,
    width: int,
    channels_last: bool,
) -> Tensor:
    return empty_map(grad, (images, grad.shape[1], height, width), channels_last)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    input, rois, ctx.spatial_scale, _, _, ctx.with_places = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(rois, output[1])
    ctx.size = (input.shape[0], input.shape[2], input.shape[3])
    ctx.channels_last = prefers_channels_last(input)


def _backward(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Any, ...]:
    if grad is None:
        return (None,) * 6
    if not ctx.with_places:
        raise RuntimeError("roi_pool: called without places, so there is no gradient")
    rois, places = ctx.saved_tensors
    back = torch.ops.mrcnn.roi_pool_backward(grad, rois, places, ctx.spatial_scale, *ctx.size, ctx.channels_last)
    return back, *[None] * 5


def _save_for_double_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, rois, places, *_ = inputs
    ctx.save_for_backward(rois, places)


def _double_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    """Each bin takes the number from the place where its largest one was found."""
    rois, places = ctx.saved_tensors
    images, channels, height, width = grad.shape
    # a box of no image, which a GPU lets pass, has no places
    plane = rois[:, :1].nan_to_num().clamp(0, max(images - 1, 0)).long() * channels
    plane = plane + torch.arange(channels, device=grad.device)
    index = plane[:, :, None, None] * (height * width) + places.clamp(min=0)
    picked = grad.contiguous().view(-1)[index] if grad.numel() else grad.new_zeros(places.shape)
    return picked * (places >= 0), *[None] * 7


torch.library.register_autograd("mrcnn::roi_pool", _backward, setup_context=_save_for_backward)
torch.library.register_autograd("mrcnn::roi_pool_backward", _double_backward, setup_context=_save_for_double_backward)
