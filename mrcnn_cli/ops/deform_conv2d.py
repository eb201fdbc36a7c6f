"""Deformable convolution: v1 of "Deformable Convolutional Networks" (Dai et al., 2017) and v2, whose mask weighs the
sampling points, of "Deformable ConvNets v2" (Zhu et al., 2019).
"""

from typing import Any

import torch
from torch import Tensor

Pair = int | tuple[int, int]


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    mask: Tensor | None = None,
) -> Tensor:
    """A convolution whose window is bent: each of its points is moved by an offset of its own and sampled bilinearly.

    The values and gradients of torchvision.ops.deform_conv2d. Not bit for bit, as sums have another order: float32
    agrees within 1e-5 of the sum of the magnitudes of what is added, float64 within 1e-13 of it. The same bits come
    out on every run, and on the CPU for any number of threads. Pixels outside of the input count as zeros. A point
    with an offset that is NaN, infinite, or leads a pixel or more outside of the input counts as zero and gets no
    gradient; a NaN in the input or in the mask spreads to what is computed from it, even at weight zero.

    Args:
        input: [N, C, H, W] float32, float64, float16 or bfloat16, contiguous or channels last; the result has its type
            and memory format. On the CPU half precision is computed in float32; on a GPU columns are rounded to it and
            sums are made in float32.
        offset: [N, offset_groups * h * w * 2, H_out, W_out], for each group of channels and point of the window, row
            by row, y before x, in pixels of the input. Any floating type, computed in float32 (float64 for float64
            input).
        weight: [C_out, C / groups, h, w], of the type of input. The groups are found from its shape.
        bias: [C_out], of the type of input.
        stride: pixels between windows, one number or (y, x).
        padding: rows and columns of zeros around the input, one number or (y, x).
        dilation: pixels between the points of a window, one number or (y, x).
        mask: [N, offset_groups * h * w, H_out, W_out], what each point is multiplied with; any floating type.

    Under autocast, input, weight and bias are brought to its type; offsets and masks keep theirs.

    Returns:
        [N, C_out, H_out, W_out].

    Raises:
        RuntimeError: a shape or type does not fit, or the padded input is smaller than the window; and where a gradient
            of the gradient is asked for, which there is not.
    """
    input, weight, bias = _autocast(input, weight, bias)
    return torch.ops.mrcnn.deform_conv2d(
        input, offset, weight, bias, mask, _pair(stride), _pair(padding), _pair(dilation)
    )


def _pair(value: Pair) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


def _autocast(input: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    device = input.device.type
    if device not in ("cpu", "cuda") or not torch.is_autocast_enabled(device) or input.dtype == torch.float64:
        return input, weight, bias
    dtype = torch.get_autocast_dtype(device)
    return input.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


def _like(tensor: Tensor, size: Any, like: Tensor | None = None) -> Tensor:
    """An empty tensor of tensor's type, in like's memory format; what is both counts as contiguous."""
    channels_last = like is not None and (
        like.is_contiguous(memory_format=torch.channels_last) and not like.is_contiguous()
    )
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(size, dtype=tensor.dtype, device=tensor.device, memory_format=memory_format)


@torch.library.register_fake("mrcnn::deform_conv2d")
def _shape(input: Tensor, offset: Tensor, weight: Tensor, *_: Any) -> Tensor:
    return _like(input, (input.shape[0], weight.shape[0], *offset.shape[2:]), input)


@torch.library.register_fake("mrcnn::deform_conv2d_backward")
def _backward_shape(
    grad: Tensor, input: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    for_input, for_points, for_weight, for_bias = rest[-4:]
    masks = offset if mask is None else mask
    return (
        _like(input, input.shape, input) if for_input else _like(input, 0),
        _like(offset, offset.shape) if for_points else _like(offset, 0),
        _like(weight, weight.shape, weight) if for_weight else _like(weight, 0),
        _like(masks, masks.shape) if for_points and mask is not None else _like(masks, 0),
        _like(weight, weight.shape[:1]) if for_bias else _like(weight, 0),
    )


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, offset, weight, _, mask, *geometry = inputs
    ctx.save_for_backward(input, offset, weight, mask)
    ctx.geometry = geometry


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    input, offset, weight, mask = ctx.saved_tensors
    for_input, for_offset, for_weight, for_bias, for_mask, *_ = ctx.needs_input_grad
    of_input, of_offset, of_weight, of_mask, of_bias = torch.ops.mrcnn.deform_conv2d_backward(
        grad, input, offset, weight, mask, *ctx.geometry, for_input, for_offset or for_mask, for_weight, for_bias
    )
    return (
        of_input if for_input else None,
        of_offset if for_offset else None,
        of_weight if for_weight else None,
        of_bias if for_bias else None,
        of_mask if for_mask else None,
        *[None] * 3,
    )


def _refuse_double_backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
    raise RuntimeError("deform_conv2d: its gradient can't be differentiated again; compute it without create_graph")


torch.library.register_autograd("mrcnn::deform_conv2d", _backward, setup_context=_save_for_backward)
torch.library.register_autograd("mrcnn::deform_conv2d_backward", _refuse_double_backward)
