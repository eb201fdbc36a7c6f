"""Convolutions and linear layers on the CPU by those oneDNN kernels that PyTorch's own layers do not reach.

PyTorch hands a linear layer to MKL and a convolution of 1x1 to a slower kernel of oneDNN than the one that its compiler
takes; on AMD's processors each takes about twice the time. The functions here call what the compiler calls, with the
activation and the sum of a residual block in the same pass. They give the numbers of PyTorch's layers but for the order
of sums: float32 agrees within 1e-6 of the sum of the magnitudes of what is added.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

ACTIVATIONS = {
    "none": ("none", []),
    "relu": ("relu", []),
    "relu6": ("hardtanh", [0.0, 6.0]),
    "hard_swish": ("hardswish", []),
}
# After a sum the kernels know no activation but ReLU.
AFTER_SUM = {"relu6": functional.relu6, "hard_swish": functional.hardswish}

_HAS_KERNELS = bool(torch.backends.mkldnn.is_available()) and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def takes(x: Tensor) -> bool:
    """Whether these functions can be called with such an input: float32 on the CPU and not empty.

    What is compiled takes PyTorch's own layers: its compiler cannot place these kernels among what it has fused. And so
    does what autocast is to compute in half precision: it does not reach these kernels.
    """
    usable = _HAS_KERNELS and x.device.type == "cpu" and x.dtype == torch.float32 and x.numel() > 0
    own_layers = torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu")
    return usable and bool(torch.backends.mkldnn.enabled) and not own_layers


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    activation: str = "none",
    shortcut: Tensor | None = None,
) -> Tensor:
    """activation(convolution + shortcut) in one pass, without a gradient.

    Args:
        x: [N, C, H, W], see `takes`.
        weight, bias, stride, padding, dilation, groups: as for torch.nn.functional.conv2d, numbers for both axes.
        activation: one of ACTIVATIONS.
        shortcut: of the shape of the result.
    """
    kernels = torch.ops.mkldnn._convolution_pointwise
    name, scalars = ACTIVATIONS[activation]
    geometry = (list(padding), list(stride), list(dilation), groups)
    if shortcut is None:
        return kernels(x, weight, bias, *geometry, name, scalars, "")
    found = kernels.binary(
        x, shortcut, weight, bias, *geometry, "add", 1.0, "relu" if activation == "relu" else None, [], ""
    )
    return AFTER_SUM[activation](found, inplace=True) if activation in AFTER_SUM else found


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """torch.nn.functional.linear of an input that `takes` takes, with gradients.

    Args:
        x: [N, C].
        weight: [K, C].
        bias: [K].
    """
    return _Linear.apply(x, weight, bias)


def conv1x1(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A convolution of 1x1 with stride 1 and without groups as a linear layer, with gradients.

    Args:
        x: [N, C, H, W], channels last as the result, see `takes`.
        weight: [K, C, 1, 1].
        bias: [K].
    """
    pixels = x.permute(0, 2, 3, 1)
    rows = linear(pixels.reshape(-1, x.shape[1]), weight.flatten(1), bias)
    return rows.view(*pixels.shape[:3], -1).permute(0, 3, 1, 2)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        grad = grad.contiguous()
        return (
            _product(grad, weight.t()) if wanted[0] else None,
            _product(grad.t(), x.t()) if wanted[1] else None,
            grad.sum(0) if wanted[2] else None,
        )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
