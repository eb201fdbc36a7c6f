"""Convolution, normalisation and activation as one layer: the brick of every backbone and head."""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from mrcnn_cli.models.extent import cut, normalised
from mrcnn_cli.models.sync_batch_norm import SyncBatchNorm
from mrcnn_cli.ops import conv3x3, deform_conv2d, onednn
from mrcnn_cli.ops.conv3x3 import pays

Norm = Literal["none", "frozen_batch_norm", "batch_norm", "sync_batch_norm", "group_norm"]
# The backward pass of oneDNN 3.12 (in torch 2.14), of a convolution of 1x1 with a stride and fewer input channels than
# these, channels last, writes past the end of its memory. There the pixels between are left out beforehand.
SAFE_STRIDED_CHANNELS = 16
Activation = Literal["none", "relu", "relu6", "hard_swish"]


class FrozenBatchNorm(nn.Module):
    """The four tensors of a batch norm whose statistics and affine values stay as they were loaded.

    They are buffers. The arithmetic is folded into the convolution before it (`ConvNorm.forward`), which saves a pass
    over the activations.

    Args:
        channels: C.
        eps: added to the variance. Detectron2 and torchvision use 1e-5, EfficientNet 1e-3.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))


def scale_and_shift(norm: Any) -> tuple[Tensor, Tensor]:
    """[C] and [C] of a batch norm, of whichever class, with fixed statistics: y = x * scale + shift."""
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return scale, norm.bias - norm.running_mean * scale


def norm_layer(norm: Norm, channels: int, eps: float = 1e-5) -> nn.Module | None:
    """The normalisation named in a recipe, or None. Group norm (Wu and He, 2018) has 32 groups, as in the paper."""
    if norm == "frozen_batch_norm":
        return FrozenBatchNorm(channels, eps)
    if norm == "batch_norm":
        return nn.BatchNorm2d(channels, eps=eps)
    if norm == "sync_batch_norm":
        return SyncBatchNorm(channels, eps=eps)
    if norm == "group_norm":
        groups = next(g for g in (32, 16, 8, 4, 2, 1) if channels % g == 0)
        return nn.GroupNorm(groups, channels, eps=eps)
    return None


class ConvNorm(nn.Conv2d):
    """A convolution with its normalisation and activation. Without a normalisation it has a bias.

    Args:
        same_padding: pad as TensorFlow's SAME does: to ceil(input / stride) outputs, the odd pixel at the bottom and
            the right. The EfficientNet weights were trained with it. Otherwise kernel // 2 on every side.
    """

    is_plain = True  # a convolution as everybody has it

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        *,
        groups: int = 1,
        dilation: int = 1,
        norm: Norm = "none",
        activation: Activation = "none",
        eps: float = 1e-5,
        same_padding: bool = False,
    ):
        uneven = same_padding and stride > 1
        padding = 0 if uneven else dilation * (kernel // 2)
        super().__init__(inputs, outputs, kernel, stride, padding, dilation, groups, bias=norm == "none")
        self.pad_to = kernel - stride if uneven else 0
        self.norm = norm_layer(norm, outputs, eps)
        self.activation = activation
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """activation(norm(convolution of [N, C, H, W]) + shortcut); the shortcut has the shape of the result."""
        if self.pad_to:
            x = functional.pad(x, self._uneven_padding(x))
        weight, bias, norm = self._folded()
        if norm is None and not torch.is_grad_enabled() and self.is_plain:  # all in one pass
            if self.activation in ("none", "relu") and self._suits_conv3x3(x):
                return conv3x3(x, weight, bias, shortcut, self.activation == "relu")
            if onednn.takes(x):
                assert not isinstance(self.padding, str)
                geometry = (self.stride, self.padding, self.dilation)
                return onednn.conv2d(x, weight, bias, *geometry, self.groups, self.activation, shortcut)
        x = self.convolve(x, weight, bias)
        if norm is not None:
            x = normalised(norm, x)
        if shortcut is not None:
            x = x + shortcut
        if self.activation == "relu":
            x = functional.relu(x, inplace=True)
        elif self.activation == "relu6":
            x = functional.relu6(x, inplace=True)
        elif self.activation == "hard_swish":
            x = functional.hardswish(x, inplace=True)
        return cut(x)

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The convolution alone, with these weights."""
        if self._suits_conv3x3(x):
            return conv3x3(x, weight, bias)
        if self.kernel_size == self.stride == (1, 1) and self.groups == 1 and onednn.takes(x):
            return onednn.conv1x1(x, weight, bias)
        if self.kernel_size == (1, 1) and self.in_channels < SAFE_STRIDED_CHANNELS and self.padding == (0, 0):
            rows, columns = self.stride
            return functional.conv2d(x[:, :, ::rows, ::columns], weight, bias, groups=self.groups)
        return self._conv_forward(x, weight, bias)

    def _suits_conv3x3(self, x: Tensor) -> bool:
        geometry = (self.kernel_size, self.stride, self.padding, self.dilation, self.groups)
        return geometry == ((3, 3), (1, 1), (1, 1), (1, 1), 1) and self.is_plain and pays(x, self.weight)

    def _folded(self) -> tuple[Tensor, Tensor | None, nn.Module | None]:
        """Weights and bias that contain the normalisation where it is a fixed one, and otherwise the normalisation."""
        norm = self.norm
        is_fixed = isinstance(norm, nn.BatchNorm2d) and not norm.training and not torch.is_grad_enabled()
        if norm is None or not (is_fixed or isinstance(norm, FrozenBatchNorm)):
            return self.weight, self.bias, norm
        scale, shift = scale_and_shift(norm)
        return self.weight * scale[:, None, None, None], shift, None

    def _uneven_padding(self, x: Tensor) -> list[int]:
        kernel, stride = self.kernel_size[0], self.stride[0]
        sides: list[int] = []
        for length in (x.shape[-1], x.shape[-2]):  # functional.pad wants the last axis first
            total = max((-(-length // stride) - 1) * stride + kernel - length, 0)
            sides += [total // 2, total - total // 2]
        return sides


class Linear(nn.Linear):
    """A linear layer that takes the faster of the products that PyTorch has."""

    def forward(self, x: Tensor) -> Tensor:
        if onednn.takes(x):
            return onednn.linear(x, self.weight, self.bias)
        return super().forward(x)


class DeformConvNorm(ConvNorm):
    """A 3x3 convolution whose samples are moved by offsets that it finds itself.

    "Deformable Convolutional Networks" (Dai et al., 2017), or with `modulated` its second version (Zhu et al., 2018),
    where each sample is weighted too.

    Args:
        groups: as many of the input's channels share their offsets; all others as `ConvNorm`.
    """

    is_plain = False

    def __init__(self, inputs: int, outputs: int, stride: int = 1, *, modulated: bool, dilation: int = 1, **layer: Any):
        super().__init__(inputs, outputs, 3, stride, dilation=dilation, **layer)
        self.modulated = modulated
        self.offset = nn.Conv2d(inputs, 27 if modulated else 18, 3, stride, dilation, dilation)
        for parameter in self.offset.parameters():  # at first a plain convolution, halved if modulated
            nn.init.zeros_(parameter)

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        found = self.offset(x)
        return deform_conv2d(
            x,
            found[:, :18],
            weight,
            bias,
            self.stride[0],
            self.dilation[0],  # the padding of a 3x3 window
            self.dilation[0],
            found[:, 18:].sigmoid() if self.modulated else None,
        )


def freeze(*modules: nn.Module) -> None:
    """Take modules out of training: no gradients, and batch norms keep their statistics."""
    for module in modules:
        for parameter in module.parameters():
            parameter.requires_grad_(False)
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.momentum = 0.0
