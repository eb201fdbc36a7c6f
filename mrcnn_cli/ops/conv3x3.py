"""The convolution that most of a detector's time goes into: 3x3, stride 1, by Winograd's minimal filtering.

"Fast Algorithms for Convolutional Neural Networks" (Lavin and Gray, 2016), F(2x2, 3x3): 16 multiplications where the
definition has 36. The kernel is for the CPU; on a GPU cuDNN chooses this algorithm by itself.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

# With fewer the transformations cost more than the multiplications that they save.
FEWEST_CHANNELS = 24
_HAS_VECTORS = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def conv3x3(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, shortcut: Tensor | None = None, relu: bool = False
) -> Tensor:
    """relu(convolution of 3x3 with stride 1 and padding 1 + bias + shortcut), with gradients.

    The values of torch.nn.functional.conv2d but for the order of sums: float32 agrees within 1e-6 of the sum of the
    magnitudes of what is added, float64 within 1e-14 of it. A NaN and an infinite input make all outputs NaN whose tile
    holds it, some of which lie two pixels away. On the CPU the same bits come out on every run, for any number of
    threads, and with AVX2 as with AVX-512.

    Args:
        input: [N, C, H, W] of any floating type; float32 and float64 on the CPU take the kernel, everything else and
            whatever autocast converts takes PyTorch's convolution. Best channels last, as the result then is.
        weight: [C_out, C, 3, 3].
        bias: [C_out].
        shortcut: [N, C_out, H, W].
        relu: whether negative results become zero.

    Returns:
        [N, C_out, H, W].

    Raises:
        RuntimeError: a shape or type does not fit.
    """
    if input.device.type == "cpu" and input.dtype in (torch.float32, torch.float64) and not _autocasts():
        return torch.ops.mrcnn.conv3x3(input, weight, bias, shortcut, relu)
    output = functional.conv2d(input, weight, bias, padding=1)
    if shortcut is not None:
        output = output + shortcut
    return output.relu() if relu else output


def pays(input: Tensor, weight: Tensor) -> bool:
    """Whether the kernel is the fastest way there is: float32 on a processor with AVX2, and not too few channels."""
    return (
        input.device.type == "cpu"
        and input.dtype == torch.float32
        and min(weight.shape[:2]) >= FEWEST_CHANNELS
        and _HAS_VECTORS
        and not _autocasts()
    )


def _autocasts() -> bool:
    return torch.is_autocast_enabled("cpu")


@torch.library.register_fake("mrcnn::conv3x3")
def _shape(input: Tensor, weight: Tensor, bias: Tensor | None, shortcut: Tensor | None, relu: bool) -> Tensor:
    size = (input.shape[0], weight.shape[0], *input.shape[2:])
    return torch.empty(size, dtype=input.dtype, device=input.device, memory_format=torch.channels_last)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, weight, bias, _, relu = inputs
    ctx.save_for_backward(input, weight, output if relu else None)
    ctx.outputs = None if bias is None else [weight.shape[0]]


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    input, weight, output = ctx.saved_tensors
    for_input, for_weight, for_bias, for_shortcut, _ = ctx.needs_input_grad
    if output is not None:
        grad = grad * (output > 0)
    of_input = of_weight = of_bias = None
    if for_input:  # the same convolution once more, of filters that are turned round
        of_input = torch.ops.mrcnn.conv3x3(grad, weight.flip(2, 3).transpose(0, 1), None, None, False)
    if for_weight or for_bias:
        geometry = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)
        _, of_weight, of_bias = torch.ops.aten.convolution_backward(
            grad, input, weight, ctx.outputs, *geometry, [False, for_weight, for_bias]
        )
    return of_input, of_weight, of_bias, grad if for_shortcut else None, None


torch.library.register_autograd("mrcnn::conv3x3", _backward, setup_context=_save_for_backward)
