"""Batch normalisation with the statistics of all processes' images, on CPUs too."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class SyncBatchNorm(nn.BatchNorm2d):
    """Between GPUs PyTorch's layer of that name, which knows no CPUs; on these the same by sums over all processes.

    The sums are differentiable: in the backward pass the gradients of all processes are added up in the same way. Each
    process may have another number of images, or none at all.
    """

    process_group = None  # all processes
    _check_non_zero_input_channels = nn.SyncBatchNorm._check_non_zero_input_channels

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] of this process -> the same, normalised by the mean and variance of all."""
        if not self.training or not dist.is_initialized():
            return super().forward(x)
        if x.device.type == "cuda":
            return nn.SyncBatchNorm.forward(self, x)  # type: ignore[arg-type]  # DDP refuses a subclass on CPUs
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        cells = values.new_full((1,), values.numel() // values.shape[1])
        total, count = _Sum.apply(torch.cat([values.sum((0, 2, 3)), cells])).split([values.shape[1], 1])
        mean = total / count.clamp(min=1)
        centred = values - mean[:, None, None]
        variance = _Sum.apply(centred.square().sum((0, 2, 3))) / count.clamp(min=1)
        if count > 0:
            with torch.no_grad():
                self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
                unbiased = variance * count / (count - 1).clamp(min=1)
                self.running_var.lerp_(unbiased.to(self.running_var), self.momentum)
                self.num_batches_tracked.add_(1)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


class _Sum(torch.autograd.Function):
    """The sum over all processes, in each of them; so each value's gradient is the sum of theirs."""

    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        return _summed(values)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return _summed(gradient)


def _summed(values: Tensor) -> Tensor:
    values = values.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(values)
    return values
