"""ResNet: "Deep Residual Learning for Image Recognition" (He et al., 2015), table 1."""

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from mrcnn_cli.config import Config
from mrcnn_cli.models.convolution import ConvNorm, Norm, freeze

# name -> (blocks per stage, are they bottlenecks)
DEPTHS = {
    "resnet18": ((2, 2, 2, 2), False),
    "resnet34": ((3, 4, 6, 3), False),
    "resnet50": ((3, 4, 6, 3), True),
    "resnet101": ((3, 4, 23, 3), True),
}


class ResNetConfig(Config):
    name: Literal["resnet18", "resnet34", "resnet50", "resnet101"]
    weights: Literal["none"] = "none"
    width: int = Field(64, ge=8, multiple_of=8)  # channels of the stem; the paper's is 64
    norm: Norm = "batch_norm"
    stride_in_1x1: bool = False  # where a bottleneck strides: True in the original MSRA models, False in torchvision
    frozen_stages: int = Field(0, ge=0, le=5)  # the stem counts as the first; Detectron2's zoo freezes 2

    @model_validator(mode="after")
    def _something_learns(self) -> "ResNetConfig":
        if self.weights == "none" and self.norm == "frozen_batch_norm":
            raise ValueError("norm = 'frozen_batch_norm' needs weights; from scratch take 'batch_norm' or 'group_norm'")
        return self


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, norm: Norm, stride_in_1x1: bool):
        super().__init__()
        self.conv1 = ConvNorm(inputs, width, 3, stride, norm=norm, activation="relu")
        self.conv2 = ConvNorm(width, width, 3, norm=norm)
        self.shortcut = ConvNorm(inputs, width, 1, stride, norm=norm) if stride > 1 or inputs != width else None

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return functional.relu(self.conv2(self.conv1(x)) + shortcut, inplace=True)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions and a shortcut; four times as many channels come out as the 3x3 has."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, norm: Norm, stride_in_1x1: bool):
        super().__init__()
        outputs = width * self.expansion
        first, second = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = ConvNorm(inputs, width, 1, first, norm=norm, activation="relu")
        self.conv2 = ConvNorm(width, width, 3, second, norm=norm, activation="relu")
        self.conv3 = ConvNorm(width, outputs, 1, norm=norm)
        self.shortcut = ConvNorm(inputs, outputs, 1, stride, norm=norm) if stride > 1 or inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return functional.relu(self.conv3(self.conv2(self.conv1(x))) + shortcut, inplace=True)


class ResNet(nn.Module):
    """The stem and four stages; returns the stages' maps at strides 4, 8, 16, 32.

    Args:
        config: which depth, and how it is normalised.
        input_channels: C of the pixels.
    """

    strides = (4, 8, 16, 32)

    def __init__(self, config: ResNetConfig, input_channels: int = 3):
        super().__init__()
        depths, bottleneck = DEPTHS[config.name]
        block = Bottleneck if bottleneck else BasicBlock
        width = config.width
        self.stem = ConvNorm(input_channels, width, 7, 2, norm=config.norm, activation="relu")
        stages, channels, inputs = [], [], width
        for index, depth in enumerate(depths):
            stage_width = width * 2**index
            blocks = []
            for position in range(depth):
                stride = 2 if position == 0 and index > 0 else 1
                blocks.append(block(inputs, stage_width, stride, config.norm, config.stride_in_1x1))
                inputs = stage_width * block.expansion
            stages.append(nn.Sequential(*blocks))
            channels.append(inputs)
        self.stages = nn.ModuleList(stages)
        self.channels = tuple(channels)
        freeze(*([self.stem, *self.stages][: config.frozen_stages]))
        self.frozen_stages = config.frozen_stages

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """[N, C, H, W] normalised pixels -> four maps [N, channels[i], H / strides[i], W / strides[i]]."""
        features = []
        # No graph is kept for the frozen part: it is the part with the largest maps.
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.frozen_stages == 0):
            x = functional.max_pool2d(self.stem(pixels), 3, 2, 1)
        for index, stage in enumerate(self.stages):
            frozen = self.frozen_stages > index + 1
            with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
                x = stage(x)
            features.append(x)
        return features
