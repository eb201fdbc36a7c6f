"""Sigmoid focal loss: "Focal Loss for Dense Object Detection" (Lin et al., 2017), equation 5."""

from typing import Any

import torch
from torch import Tensor

REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}


def sigmoid_focal_loss(
    inputs: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2, reduction: str = "none"
) -> Tensor:
    """Binary cross entropy of each logit, in which what is right already counts little.

    The values of torchvision.ops.sigmoid_focal_loss; float32 losses and gradients agree with float64 to about one in a
    million of themselves, for logits of any size: those of 100 as well, where one minus the score has no digits left,
    and infinite ones. Sums are made in float64, in an order that depends on the shape alone.

    Args:
        inputs: logits of any shape, float32, float64, float16 or bfloat16; the result has this type. Half precision is
            computed in float32 and rounded once.
        targets: of the shape of `inputs`, 0 or 1, or anything between as a probability; brought to their type.
        alpha: weight of targets of 1, while those of 0 weigh 1 - alpha; -1: both weigh 1.
        gamma: 0 or more; 0 is plain cross entropy.
        reduction: "none", "mean" (over all logits) or "sum".

    Returns:
        Of the shape of `inputs`, or [] for a reduction. Differentiable once, in `inputs`.

    Raises:
        RuntimeError: a shape, type or value does not fit, or targets ask for a gradient.
    """
    if targets.requires_grad:
        raise RuntimeError("sigmoid_focal_loss: targets get no gradient, but require one; pass targets.detach()")
    return torch.ops.mrcnn.sigmoid_focal_loss(
        inputs, targets.to(inputs.dtype), float(alpha), float(gamma), _reduction(reduction)
    )


def sigmoid_focal_loss_labels(
    inputs: Tensor, labels: Tensor, alpha: float = 0.25, gamma: float = 2, reduction: str = "none"
) -> Tensor:
    """`sigmoid_focal_loss` for whole-number labels, whose one-hot targets are never stored.

    Args:
        inputs: [N, K] logits.
        labels: [N] int64; 0..K-1 is that column's class, K the background (a target of 0 in every column), and a row
            whose label is negative is ignored: its losses and gradients are 0, though "mean" counts it.
        alpha, gamma, reduction: as for `sigmoid_focal_loss`.

    Returns:
        [N, K], or [] for a reduction. Differentiable once, in `inputs`.

    Raises:
        RuntimeError: a shape, type or value does not fit, or (on the CPU) a label is above K. On a GPU the losses of
            such a row are NaN.
    """
    if labels.dtype != torch.int64:
        raise RuntimeError(f"sigmoid_focal_loss: labels must be int64, got {str(labels.dtype).removeprefix('torch.')}")
    return torch.ops.mrcnn.sigmoid_focal_loss(inputs, labels, float(alpha), float(gamma), _reduction(reduction))


def _reduction(name: str) -> int:
    if name not in REDUCTIONS:
        raise RuntimeError(f"sigmoid_focal_loss: reduction must be none, mean or sum, got {name!r}")
    return REDUCTIONS[name]


@torch.library.register_fake("mrcnn::sigmoid_focal_loss")
def _shape(inputs: Tensor, targets: Tensor, alpha: float, gamma: float, reduction: int) -> Tensor:
    return inputs.new_empty(() if reduction else inputs.shape)


@torch.library.register_fake("mrcnn::sigmoid_focal_loss_backward")
def _backward_shape(
    grad: Tensor, inputs: Tensor, targets: Tensor, alpha: float, gamma: float, reduction: int
) -> Tensor:
    return inputs.new_empty(inputs.shape)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    logits, targets, *ctx.options = inputs
    ctx.save_for_backward(logits, targets)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return torch.ops.mrcnn.sigmoid_focal_loss_backward(grad, *ctx.saved_tensors, *ctx.options), None, None, None, None


def _refuse(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    raise RuntimeError("sigmoid_focal_loss: not differentiable twice")


torch.library.register_autograd("mrcnn::sigmoid_focal_loss", _backward, setup_context=_save_for_backward)
torch.library.register_autograd("mrcnn::sigmoid_focal_loss_backward", _refuse)
