"""Boxes as deltas to anchors, and back: "Rich feature hierarchies" (Girshick et al., 2014), appendix C."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mrcnn_cli.ops.gradients import second_derivatives

# exp() of a wild width or height delta overflows; Detectron caps it where a 16 px anchor becomes 1000 px wide.
LOG_MAX_SCALE = math.log(1000.0 / 16)


def encode(boxes: Tensor, anchors: Tensor, weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0)) -> Tensor:
    """Deltas that turn each anchor into its box.

    dw and dh are torchvision's BoxCoder's to the bit; dx and dy are rounded in another order and differ by a few
    roundings of the coordinates, in anchor sizes. Half precision is computed in float32. Differentiable twice.

    Args:
        boxes: [..., 4] x1, y1, x2, y2.
        anchors: [..., 4], with positive widths and heights; both are broadcast against each other.
        weights: factors on dx, dy, dw, dh; (10, 10, 5, 5) in Fast R-CNN's box head.

    Returns:
        [..., 4] dx, dy, dw, dh, of the wider of both types. A box without width or height has infinite ones, an
        inverted one NaN.

    Raises:
        RuntimeError: a shape or type does not fit.
    """
    boxes, anchors = _of_one_type("encode", "boxes", boxes, "anchors", anchors)
    if boxes.shape != anchors.shape:
        boxes, anchors = torch.broadcast_tensors(boxes, anchors)
    deltas = torch.ops.mrcnn.encode_boxes(boxes.reshape(-1, 4), anchors.reshape(-1, 4), _floats(weights))
    return deltas.reshape(boxes.shape)


def decode(
    deltas: Tensor,
    anchors: Tensor,
    weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
    clamp: float = LOG_MAX_SCALE,
) -> Tensor:
    """Boxes that deltas make of anchors: the inverse of `encode`.

    Equal bit for bit to torchvision's BoxCoder in float32 and float64. Half precision is computed in float32.
    Differentiable twice. Anchors that are broadcast over whole dimensions, in front or before the last one, are not
    copied: [R, 1, 4] against [R, K, 4], or [A, 4] against [N, A, 4].

    Args:
        deltas: [..., 4] dx, dy, dw, dh.
        anchors: [..., 4], broadcast against `deltas`.
        weights: as for `encode`.
        clamp: upper limit of dw and dh after division by their weights.

    Returns:
        [..., 4] x1, y1, x2, y2, of the wider of both types; not clipped to any image.

    Raises:
        RuntimeError: a shape or type does not fit.
    """
    deltas, anchors = _of_one_type("decode", "deltas", deltas, "anchors", anchors)
    shape = torch.broadcast_shapes(deltas.shape, anchors.shape)
    repeats = _repeats(shape, anchors.shape)
    if repeats is None:
        anchors, repeats = anchors.expand(shape), 1
    boxes = torch.ops.mrcnn.decode_boxes(
        deltas.expand(shape).reshape(-1, 4), anchors.reshape(-1, 4), repeats, _floats(weights), float(clamp)
    )
    return boxes.reshape(shape)


def clip_boxes(boxes: Tensor, size: tuple[float, float]) -> Tensor:
    """Boxes cut to an image; a NaN stays. Differentiable any number of times.

    Args:
        boxes: [..., 4] x1, y1, x2, y2.
        size: (height, width) of the image.

    Returns:
        [..., 4], of the type of `boxes`.

    Raises:
        RuntimeError: a shape or type does not fit.
    """
    if boxes.ndim < 1 or boxes.shape[-1] != 4:
        raise RuntimeError(f"clip_boxes: boxes must be [..., 4], got {list(boxes.shape)}")
    height, width = size
    return torch.ops.mrcnn.clip_boxes(boxes.reshape(-1, 4), float(height), float(width)).reshape(boxes.shape)


def _of_one_type(op: str, name: str, values: Tensor, other_name: str, others: Tensor) -> tuple[Tensor, Tensor]:
    for argument, tensor in ((name, values), (other_name, others)):
        if tensor.ndim < 1 or tensor.shape[-1] != 4:
            raise RuntimeError(f"{op}: {argument} must be [..., 4], got {list(tensor.shape)}")
    if values.dtype == others.dtype:
        return values, others
    widest = torch.promote_types(values.dtype, others.dtype)
    return values.to(widest), others.to(widest)


def _floats(weights: Sequence[float]) -> list[float]:
    return [float(weight) for weight in weights]


def _repeats(shape: Sequence[int], anchors: Sequence[int]) -> int | None:
    """How many rows in a row belong to one anchor, if anchors are broadcast over whole dimensions only."""
    lead = [1] * (len(shape) - len(anchors)) + list(anchors[:-1])
    first, last = 0, len(lead)
    while last > 0 and lead[last - 1] == 1:
        last -= 1
    while first < last and lead[first] == 1:
        first += 1
    if lead[first:last] != list(shape[first:last]):
        return None
    return math.prod(shape[last:-1])


# ---- shapes


@torch.library.register_fake("mrcnn::encode_boxes")
@torch.library.register_fake("mrcnn::decode_boxes")
@torch.library.register_fake("mrcnn::clip_boxes")
def _same_shape(values: Tensor, *_: Any) -> Tensor:
    return values.new_empty(values.shape)


@torch.library.register_fake("mrcnn::encode_boxes_backward")
@torch.library.register_fake("mrcnn::decode_boxes_backward")
def _gradients_shape(grad: Tensor, values: Tensor, anchors: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return values.new_empty(values.shape), anchors.new_empty(anchors.shape)


@torch.library.register_fake("mrcnn::clip_boxes_backward")
def _gradient_shape(grad: Tensor, boxes: Tensor, *_: Any) -> Tensor:
    return boxes.new_empty(boxes.shape)


# ---- gradients


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    values, anchors, *ctx.how = inputs
    ctx.save_for_backward(values, anchors)


def _encode_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return *torch.ops.mrcnn.encode_boxes_backward(grad, *ctx.saved_tensors, *ctx.how), None


def _decode_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return *torch.ops.mrcnn.decode_boxes_backward(grad, *ctx.saved_tensors, *ctx.how), None, None, None


def _save_for_double_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    grad, values, anchors, *ctx.how = inputs
    ctx.save_for_backward(grad, values, anchors)


def _encode_double_backward(ctx: Any, *weights: Tensor | None) -> tuple[Any, ...]:
    grad, boxes, anchors = ctx.saved_tensors
    return *second_derivatives(lambda b, a: _encoded(b, a, *ctx.how), (boxes, anchors), grad, weights), None


def _decode_double_backward(ctx: Any, *weights: Tensor | None) -> tuple[Any, ...]:
    grad, deltas, anchors = ctx.saved_tensors
    found = second_derivatives(lambda d, a: _decoded(d, a, *ctx.how), (deltas, anchors), grad, weights)
    return *found, None, None, None


def _encoded(boxes: Tensor, anchors: Tensor, weights: Sequence[float]) -> Tensor:
    """`encode` in PyTorch's own operators, for second derivatives."""
    size, anchor_size = boxes[:, 2:] - boxes[:, :2], anchors[:, 2:] - anchors[:, :2]
    shift = (boxes[:, :2] + 0.5 * size - anchors[:, :2] - 0.5 * anchor_size) / anchor_size
    return torch.cat([shift, torch.log(size / anchor_size)], -1) * boxes.new_tensor(weights)


def _decoded(deltas: Tensor, anchors: Tensor, repeats: int, weights: Sequence[float], clamp: float) -> Tensor:
    """`decode` in PyTorch's own operators, for second derivatives."""
    rounds = len(deltas) // max(len(anchors) * repeats, 1)
    deltas = (deltas / deltas.new_tensor(weights)).reshape(rounds, len(anchors), repeats, 4)
    low, high = anchors[:, None, :2], anchors[:, None, 2:]
    center = low + 0.5 * (high - low) + deltas[..., :2] * (high - low)
    half = 0.5 * (high - low) * torch.exp(deltas[..., 2:].clamp(max=clamp))
    return torch.cat([center - half, center + half], -1).reshape(-1, 4)


def _save_clip_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    boxes, *ctx.size = inputs
    ctx.save_for_backward(boxes)


def _clip_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return torch.ops.mrcnn.clip_boxes_backward(grad, *ctx.saved_tensors, *ctx.size), None, None


def _save_clip_for_double_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, boxes, *ctx.size = inputs
    ctx.save_for_backward(boxes)


def _clip_double_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return torch.ops.mrcnn.clip_boxes_backward(grad, *ctx.saved_tensors, *ctx.size), None, None, None


torch.library.register_autograd("mrcnn::encode_boxes", _encode_backward, setup_context=_save_for_backward)
torch.library.register_autograd("mrcnn::decode_boxes", _decode_backward, setup_context=_save_for_backward)
torch.library.register_autograd("mrcnn::clip_boxes", _clip_backward, setup_context=_save_clip_for_backward)
torch.library.register_autograd(
    "mrcnn::encode_boxes_backward", _encode_double_backward, setup_context=_save_for_double_backward
)
torch.library.register_autograd(
    "mrcnn::decode_boxes_backward", _decode_double_backward, setup_context=_save_for_double_backward
)
torch.library.register_autograd(
    "mrcnn::clip_boxes_backward", _clip_double_backward, setup_context=_save_clip_for_double_backward
)
