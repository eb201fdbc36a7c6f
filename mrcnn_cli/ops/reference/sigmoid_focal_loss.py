"""Sigmoid focal loss, logit by logit."""

import math

import torch
from torch import Tensor


def sigmoid_focal_loss(
    inputs: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2, reduction: str = "none"
) -> Tensor:
    """Focal loss of each logit, float64; for logits up to a few hundred."""
    pairs = zip(inputs.double().flatten().tolist(), targets.double().flatten().tolist(), strict=True)
    losses = torch.tensor([_loss(x, t, alpha, gamma) for x, t in pairs], dtype=torch.float64).reshape(inputs.shape)
    return _reduced(losses, reduction)


def sigmoid_focal_loss_labels(
    inputs: Tensor, labels: Tensor, alpha: float = 0.25, gamma: float = 2, reduction: str = "none"
) -> Tensor:
    """Focal loss of each row's classes, float64."""
    losses = torch.zeros(inputs.shape, dtype=torch.float64)
    for row, label in enumerate(labels.tolist()):
        for column, x in enumerate(inputs[row].double().tolist()):
            if label >= 0:
                losses[row, column] = _loss(x, float(column == label), alpha, gamma)
    return _reduced(losses, reduction)


def _reduced(losses: Tensor, reduction: str) -> Tensor:
    return {"none": losses, "mean": losses.mean(), "sum": losses.sum()}[reduction]


def _loss(x: float, target: float, alpha: float, gamma: float) -> float:
    # exp(-708) is about the smallest double: from there on log1p(exp(x)) is x or 0
    softplus = x if x > 700 else math.log1p(math.exp(x))
    minus = -x if x < -700 else math.log1p(math.exp(-x))
    p, rest = math.exp(-minus), math.exp(-softplus)
    entropy = target * minus + (1 - target) * softplus
    weight = alpha * target + (1 - alpha) * (1 - target) if alpha >= 0 else 1.0
    return weight * (p * (1 - target) + rest * target) ** gamma * entropy
