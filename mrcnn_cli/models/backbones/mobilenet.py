"""MobileNetV2 (Sandler et al., 2018) and MobileNetV3-Large ("Searching for MobileNetV3", Howard et al., 2019)."""

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from mrcnn_cli.config import Config
from mrcnn_cli.models.convolution import Activation, ConvNorm, Norm, freeze
from mrcnn_cli.models.extent import mean


@dataclass(frozen=True)
class Block:
    """One inverted residual: kernel, channels within and after it, stride, activation, and whether it is squeezed."""

    kernel: int
    width: int
    outputs: int
    stride: int = 1
    activation: Activation = "relu6"
    squeezed: bool = False


def _version2() -> tuple[Block, ...]:
    """Table 2 of the paper: (expansion, channels, blocks, stride of the first) per stage."""
    stages = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    blocks, inputs = [], 32
    for expansion, outputs, depth, stride in stages:
        for position in range(depth):
            blocks.append(Block(3, expansion * inputs, outputs, stride if position == 0 else 1))
            inputs = outputs
    return tuple(blocks)


_RELU: Activation = "relu"
_SWISH: Activation = "hard_swish"

# Table 1 of the paper.
_VERSION3 = (
    Block(3, 16, 16, 1, _RELU),
    Block(3, 64, 24, 2, _RELU),
    Block(3, 72, 24, 1, _RELU),
    Block(5, 72, 40, 2, _RELU, True),
    Block(5, 120, 40, 1, _RELU, True),
    Block(5, 120, 40, 1, _RELU, True),
    Block(3, 240, 80, 2, _SWISH),
    Block(3, 200, 80, 1, _SWISH),
    Block(3, 184, 80, 1, _SWISH),
    Block(3, 184, 80, 1, _SWISH),
    Block(3, 480, 112, 1, _SWISH, True),
    Block(3, 672, 112, 1, _SWISH, True),
    Block(5, 672, 160, 2, _SWISH, True),
    Block(5, 960, 160, 1, _SWISH, True),
    Block(5, 960, 160, 1, _SWISH, True),
)

# name -> (channels and activation of the stem, the blocks, channels of the last convolution).
DESIGNS: dict[str, tuple[int, Activation, tuple[Block, ...], int]] = {
    "mobilenet_v2": (32, "relu6", _version2(), 1280),
    "mobilenet_v3_large": (16, "hard_swish", _VERSION3, 960),
}
# The last layer at each of the strides 4, 8, 16, 32 - of version 2 without the wide one that is for the classifier.
TAPS = {"mobilenet_v2": (3, 6, 13, 17), "mobilenet_v3_large": (3, 6, 12, 16)}


class MobileNetConfig(Config):
    name: Literal["mobilenet_v2", "mobilenet_v3_large"]
    weights: Literal["none", "given"] = "none"  # "given": training begins with a file, --weights
    norm: Norm = "batch_norm"
    norm_eps: float = Field(1e-5, ge=0)  # torchvision's classifier of version 3 was trained with 1e-3
    frozen_layers: int = Field(0, ge=0)  # the stem counts as the first
    # Layers whose maps are taken, the stem being 0; by default the last one at each of the strides 4, 8, 16 and 32.
    taps: tuple[int, ...] = ()

    @property
    def maps(self) -> int:
        """How many maps come out."""
        return len(self.taps or TAPS[self.name])

    @model_validator(mode="after")
    def _usable(self) -> "MobileNetConfig":
        if self.weights == "none" and self.norm == "frozen_batch_norm":
            raise ValueError("norm = 'frozen_batch_norm' needs weights; from scratch take 'batch_norm' or 'group_norm'")
        last = len(DESIGNS[self.name][2]) + 1
        if list(self.taps) != sorted(set(self.taps)) or not all(1 <= tap <= last for tap in self.taps):
            raise ValueError(f"taps must ascend, from 1 to {last} at most")
        if self.frozen_layers > last + 1:
            raise ValueError(f"frozen_layers must be at most {last + 1}, the number of layers")
        return self


class Squeeze(nn.Module):
    """Each channel weighted by what all of them are on average ("Squeeze-and-Excitation Networks", Hu et al., 2017).

    The average is over the whole map, padding included.
    """

    def __init__(self, channels: int):
        super().__init__()
        # A quarter, rounded to a multiple of 8, but not down by more than a tenth.
        quarter = channels // 4
        width = max(8, int(quarter + 4) // 8 * 8)
        width += 8 if width < 0.9 * quarter else 0
        self.fc1, self.fc2 = nn.Conv2d(channels, width, 1), nn.Conv2d(width, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = functional.relu(self.fc1(mean(x)))
        return x * functional.hardsigmoid(self.fc2(hidden))


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise convolution, squeeze where there is one, 1x1 projection without activation.

    Args:
        block: its sizes.
        inputs: channels.
        norm: after each convolution.
        eps: of the norms.
        same_padding: of the depthwise convolution, as for `ConvNorm`.
    """

    def __init__(self, block: Block, inputs: int, norm: Norm, eps: float, same_padding: bool = False):
        super().__init__()
        width, activation = block.width, block.activation
        self.expand = ConvNorm(inputs, width, 1, norm=norm, activation=activation, eps=eps) if width != inputs else None
        self.depthwise = ConvNorm(
            width,
            width,
            block.kernel,
            block.stride,
            groups=width,
            norm=norm,
            activation=activation,
            eps=eps,
            same_padding=same_padding,
        )
        self.squeeze = Squeeze(width) if block.squeezed else None
        self.project = ConvNorm(width, block.outputs, 1, norm=norm, eps=eps)
        self.has_shortcut = block.stride == 1 and inputs == block.outputs

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else self.expand(x)
        y = self.depthwise(y)
        if self.squeeze is not None:
            y = self.squeeze(y)
        return self.project(y, x if self.has_shortcut else None)


class MobileNet(nn.Module):
    """The stem, the blocks and the last 1x1 convolution as `layers`, of which those after the last tap are left out.

    Args:
        config: which version, and which maps are taken.
        input_channels: C of the pixels.
    """

    def __init__(self, config: MobileNetConfig, input_channels: int = 3):
        super().__init__()
        self.config, self.taps = config, config.taps or TAPS[config.name]
        stem, activation, blocks, last = DESIGNS[config.name]
        norm, eps = config.norm, config.norm_eps
        layers: list[nn.Module] = [ConvNorm(input_channels, stem, 3, 2, norm=norm, activation=activation, eps=eps)]
        channels, strides = [stem], [2]
        for block in blocks:
            layers.append(InvertedResidual(block, channels[-1], norm, eps))
            channels.append(block.outputs)
            strides.append(strides[-1] * block.stride)
        layers.append(ConvNorm(channels[-1], last, 1, norm=norm, activation=activation, eps=eps))
        channels.append(last)
        strides.append(strides[-1])
        self.layers = nn.ModuleList(layers[: self.taps[-1] + 1])
        self.channels = tuple(channels[tap] for tap in self.taps)
        self.strides = tuple(strides[tap] for tap in self.taps)
        freeze(*self.layers[: config.frozen_layers])

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """[N, C, H, W] normalised pixels -> maps [N, channels[i], H / strides[i], W / strides[i]]."""
        features, x, learning = [], pixels, torch.is_grad_enabled()
        for index, layer in enumerate(self.layers):
            with torch.set_grad_enabled(learning and index >= self.config.frozen_layers):
                x = layer(x)
            if index in self.taps:
                features.append(x)
        return features
