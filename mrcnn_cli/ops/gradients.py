"""Second derivatives of operators whose first derivatives are kernels."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def second_derivatives(
    function: Callable[..., Tensor],
    values: Sequence[Tensor],
    gradient: Tensor,
    weights: Sequence[Tensor | None],
) -> tuple[Tensor, ...]:
    """Derivatives of a weighted sum of a function's gradients, by PyTorch's own operators.

    For what is rarely asked for: it takes PyTorch's time and memory, and its results can't be differentiated again.

    Args:
        function: the operator in PyTorch's own operators.
        values: what its gradients are taken by.
        gradient: of the function's result.
        weights: of the gradients, one for each of `values`; None: 0.

    Returns:
        Derivatives by `gradient` and by each of `values`.
    """
    with torch.enable_grad():
        inputs = [tensor.detach().requires_grad_() for tensor in (gradient, *values)]
        first = torch.autograd.grad(function(*inputs[1:]), inputs[1:], inputs[0], create_graph=True)
        weighted = [(slope * weight).sum() for slope, weight in zip(first, weights, strict=True) if weight is not None]
        total = torch.stack(weighted).sum()
        found = torch.autograd.grad(total, inputs, allow_unused=True)
    return tuple(
        torch.zeros_like(tensor) if slope is None else slope for tensor, slope in zip(inputs, found, strict=True)
    )
