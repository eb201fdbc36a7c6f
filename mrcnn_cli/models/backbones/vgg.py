"""VGG-16: "Very Deep Convolutional Networks for Large-Scale Image Recognition" (Simonyan and Zisserman, 2014),
configuration D, without its fully connected layers."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from mrcnn_cli.config import Config
from mrcnn_cli.models.convolution import ConvNorm, freeze

# (channels, convolutions) per stage.
STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))


class VGGConfig(Config):
    name: Literal["vgg16"]
    weights: Literal["none", "given"] = "none"  # "given": training begins with a file, --weights
    norm: Literal["none"] = "none"
    round_up: bool = False  # odd sizes when they are halved, as Caffe's pooling does
    frozen_stages: int = Field(0, ge=0, le=5)

    @property
    def maps(self) -> int:
        """How many maps come out."""
        return 3


class VGG(nn.Module):
    """Five stages of 3x3 convolutions, halved in between; returns the maps of the last three, at strides 4, 8, 16.

    Args:
        config: what is frozen, and how sizes are rounded.
        input_channels: C of the pixels.
    """

    channels = (256, 512, 512)
    strides = (4, 8, 16)

    def __init__(self, config: VGGConfig, input_channels: int = 3):
        super().__init__()
        self.config = config
        self.stages, inputs = nn.ModuleList(), input_channels
        for channels, depth in STAGES:
            stage = nn.Sequential()
            for _ in range(depth):
                stage.append(ConvNorm(inputs, channels, 3, activation="relu"))
                inputs = channels
            self.stages.append(stage)
        freeze(*self.stages[: config.frozen_stages])

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """[N, C, H, W] normalised pixels -> maps [N, channels[i], H / strides[i], W / strides[i]]."""
        features, x = [], pixels
        for index, stage in enumerate(self.stages):
            with torch.set_grad_enabled(torch.is_grad_enabled() and index >= self.config.frozen_stages):
                if index:
                    x = functional.max_pool2d(x, 2, ceil_mode=self.config.round_up)
                x = stage(x)
            features.append(x)
        return features[2:]
