"""Overlap of boxes, and of boxes apart: "Generalized Intersection over Union" (Rezatofighi et al., 2019)."""

from typing import Any

import torch
from torch import Tensor

from mrcnn_cli.ops.gradients import second_derivatives

IOU, GENERALIZED_IOU, COVERAGE, GENERALIZED_IOU_LOSS = range(4)  # csrc/box_iou/box_iou.h's Measure


def box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Intersection over union of every pair of boxes.

    Equal bit for bit to torchvision.ops.box_iou in float32 and float64, but 0 where that divides by zero because both
    boxes are empty. A NaN coordinate gives NaN. Half precision is computed in float32 and comes back in its own type.
    Differentiable twice; where coordinates are equal, both boxes share the derivative.

    Args:
        boxes1: [N, 4] x1, y1, x2, y2.
        boxes2: [M, 4].

    Returns:
        [N, M], of the wider of both types.

    Raises:
        RuntimeError: a shape or type does not fit.
    """
    return torch.ops.mrcnn.box_overlaps(*_of_one_type(boxes1, boxes2), IOU)


def generalized_box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Intersection over union less the share of the enclosing box that is in neither, -1..1, of every pair of boxes.

    Equal bit for bit to torchvision.ops.generalized_box_iou in float32 and float64, but a term is 0 where that divides
    by zero: the overlap of two empty boxes, the rest of an empty enclosing box. Otherwise as `box_iou`.

    Args:
        boxes1: [N, 4] x1, y1, x2, y2.
        boxes2: [M, 4].

    Returns:
        [N, M], of the wider of both types.

    Raises:
        RuntimeError: a shape or type does not fit.
    """
    return torch.ops.mrcnn.box_overlaps(*_of_one_type(boxes1, boxes2), GENERALIZED_IOU)


def box_coverage(boxes: Tensor, regions: Tensor) -> Tensor:
    """Share of each box that lies in each region: intersection over the box's own area, 0 for an empty box.

    Args:
        boxes: [N, 4] x1, y1, x2, y2.
        regions: [M, 4].

    Returns:
        [N, M], of the wider of both types. Differentiable twice.

    Raises:
        RuntimeError: a shape or type does not fit.
    """
    return torch.ops.mrcnn.box_overlaps(*_of_one_type(boxes, regions), COVERAGE)


def paired_box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Intersection over union of each box with the one at its place in the other list; values as of `box_iou`.

    Args:
        boxes1: [..., 4] x1, y1, x2, y2.
        boxes2: [..., 4]; both are broadcast against each other.

    Returns:
        [...], of the wider of both types. Differentiable twice.

    Raises:
        RuntimeError: a shape or type does not fit.
    """
    return _paired(boxes1, boxes2, IOU, 0.0)


def paired_generalized_box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """As `generalized_box_iou`, of each box with the one at its place in the other list.

    Args:
        boxes1: [..., 4] x1, y1, x2, y2.
        boxes2: [..., 4]; both are broadcast against each other.

    Returns:
        [...], of the wider of both types. Differentiable twice.

    Raises:
        RuntimeError: a shape or type does not fit.
    """
    return _paired(boxes1, boxes2, GENERALIZED_IOU, 0.0)


def generalized_box_iou_loss(boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7) -> Tensor:
    """1 - generalized intersection over union of each box with the one at its place in the other list.

    Equal bit for bit to torchvision.ops.generalized_box_iou_loss in float32 and float64 (before the reduction).

    Args:
        boxes1: [..., 4] x1, y1, x2, y2.
        boxes2: [..., 4]; both are broadcast against each other.
        reduction: "none", "mean" (0 of no boxes) or "sum".
        eps: added to the union and to the enclosing area before they divide.

    Returns:
        [...], or a number where it is reduced; of the wider of both types. Differentiable twice.

    Raises:
        RuntimeError: a shape or type does not fit.
        ValueError: an unknown reduction.
    """
    loss = _paired(boxes1, boxes2, GENERALIZED_IOU_LOSS, eps)
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    if reduction == "mean":
        return loss.sum() / max(loss.numel(), 1)
    raise ValueError(f"generalized_box_iou_loss: reduction must be 'none', 'mean' or 'sum', got '{reduction}'")


def _of_one_type(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor]:
    if boxes1.dtype == boxes2.dtype:
        return boxes1, boxes2
    widest = torch.promote_types(boxes1.dtype, boxes2.dtype)
    return boxes1.to(widest), boxes2.to(widest)


def _paired(boxes1: Tensor, boxes2: Tensor, measure: int, eps: float) -> Tensor:
    boxes1, boxes2 = _of_one_type(boxes1, boxes2)
    for name, boxes in (("boxes1", boxes1), ("boxes2", boxes2)):
        if boxes.ndim < 1 or boxes.shape[-1] != 4:
            raise RuntimeError(f"paired_box_iou: {name} must be [..., 4], got {list(boxes.shape)}")
    if boxes1.shape != boxes2.shape:
        boxes1, boxes2 = torch.broadcast_tensors(boxes1, boxes2)
    lead = boxes1.shape[:-1]
    return torch.ops.mrcnn.paired_box_overlaps(
        boxes1.reshape(-1, 4), boxes2.reshape(-1, 4), measure, float(eps)
    ).reshape(lead)


# ---- shapes


@torch.library.register_fake("mrcnn::box_overlaps")
def _box_overlaps_shape(boxes1: Tensor, boxes2: Tensor, measure: int) -> Tensor:
    return boxes1.new_empty((boxes1.shape[0], boxes2.shape[0]))


@torch.library.register_fake("mrcnn::paired_box_overlaps")
def _paired_box_overlaps_shape(boxes1: Tensor, boxes2: Tensor, measure: int, eps: float) -> Tensor:
    return boxes1.new_empty(boxes1.shape[0])


@torch.library.register_fake("mrcnn::box_overlaps_backward")
@torch.library.register_fake("mrcnn::paired_box_overlaps_backward")
def _gradients_shape(grad: Tensor, boxes1: Tensor, boxes2: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return boxes1.new_empty(boxes1.shape), boxes2.new_empty(boxes2.shape)


# ---- gradients


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    boxes1, boxes2, *ctx.how = inputs
    ctx.save_for_backward(boxes1, boxes2)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return *torch.ops.mrcnn.box_overlaps_backward(grad, *ctx.saved_tensors, *ctx.how), None


def _paired_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return *torch.ops.mrcnn.paired_box_overlaps_backward(grad, *ctx.saved_tensors, *ctx.how), None, None


def _save_for_double_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    grad, boxes1, boxes2, *ctx.how = inputs
    ctx.save_for_backward(grad, boxes1, boxes2)


def _double_backward(ctx: Any, grad1: Tensor | None, grad2: Tensor | None) -> tuple[Any, ...]:
    grad, boxes1, boxes2 = ctx.saved_tensors
    (measure,) = ctx.how
    found = second_derivatives(
        lambda a, b: _measured(a[:, None], b, measure, 0.0), (boxes1, boxes2), grad, (grad1, grad2)
    )
    return *found, None


def _paired_double_backward(ctx: Any, grad1: Tensor | None, grad2: Tensor | None) -> tuple[Any, ...]:
    grad, boxes1, boxes2 = ctx.saved_tensors
    found = second_derivatives(lambda a, b: _measured(a, b, *ctx.how), (boxes1, boxes2), grad, (grad1, grad2))
    return *found, None, None


def _measured(boxes1: Tensor, boxes2: Tensor, measure: int, eps: float) -> Tensor:
    """The measure in PyTorch's own operators, for second derivatives."""
    low, high = torch.maximum(boxes1[..., :2], boxes2[..., :2]), torch.minimum(boxes1[..., 2:], boxes2[..., 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    area1, area2 = ((boxes[..., 2:] - boxes[..., :2]).prod(-1) for boxes in (boxes1, boxes2))
    if measure == COVERAGE:
        return shared / torch.where(area1 > 0, area1, torch.inf)
    union = area1 + area2 - shared
    low, high = torch.minimum(boxes1[..., :2], boxes2[..., :2]), torch.maximum(boxes1[..., 2:], boxes2[..., 2:])
    if measure == GENERALIZED_IOU_LOSS:
        around = (high - low).prod(-1)
        return 1 - shared / (union + eps) + (around - union) / (around + eps)
    iou = shared / torch.where(union > 0, union, torch.inf)
    if measure == IOU:
        return iou
    around = (high - low).clamp(min=0).prod(-1)
    return iou - (around - union) / torch.where(around > 0, around, torch.inf)


torch.library.register_autograd("mrcnn::box_overlaps", _backward, setup_context=_save_for_backward)
torch.library.register_autograd("mrcnn::paired_box_overlaps", _paired_backward, setup_context=_save_for_backward)
torch.library.register_autograd(
    "mrcnn::box_overlaps_backward", _double_backward, setup_context=_save_for_double_backward
)
torch.library.register_autograd(
    "mrcnn::paired_box_overlaps_backward", _paired_double_backward, setup_context=_save_for_double_backward
)
