"""EfficientNet-Lite0: the squeeze-free, ReLU6 form of "EfficientNet" (Tan and Le, 2019) for small machines."""

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from mrcnn_cli.config import Config
from mrcnn_cli.models.backbones.mobilenet import Block, InvertedResidual
from mrcnn_cli.models.convolution import ConvNorm, Norm, freeze

# (expansion, channels, blocks, stride of the first, kernel) per stage; Lite keeps the first and last stage's depth.
STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
STEM = 32
TAPS = (2, 4, 10, 15)  # the last block at each of the strides 4, 8, 16, 32
EPS = 1e-3


class EfficientNetLiteConfig(Config):
    name: Literal["efficientnet_lite0"]
    weights: Literal["none", "imagenet"] = "imagenet"
    norm: Norm = "frozen_batch_norm"
    frozen_blocks: int = Field(1, ge=0, le=16)  # blocks without gradient; with any, the stem has none either

    @property
    def maps(self) -> int:
        """How many maps come out."""
        return len(TAPS)

    @model_validator(mode="after")
    def _something_learns(self) -> "EfficientNetLiteConfig":
        if self.weights == "none" and self.norm == "frozen_batch_norm":
            raise ValueError("norm = 'frozen_batch_norm' needs weights; from scratch take 'batch_norm' or 'group_norm'")
        if self.weights == "imagenet" and self.norm == "group_norm":
            raise ValueError("the ImageNet weights hold batch norms; take norm = 'frozen_batch_norm' or 'batch_norm'")
        return self


class EfficientNetLite(nn.Module):
    """The stem and sixteen blocks; returns the maps of blocks 2, 4, 10 and 15, at strides 4, 8, 16, 32."""

    strides = (4, 8, 16, 32)
    channels = (24, 40, 112, 320)

    def __init__(self, config: EfficientNetLiteConfig, input_channels: int = 3):
        super().__init__()
        self.stem = ConvNorm(
            input_channels, STEM, 3, 2, norm=config.norm, activation="relu6", eps=EPS, same_padding=True
        )
        blocks, inputs = [], STEM
        for expansion, outputs, depth, first_stride, kernel in STAGES:
            for position in range(depth):
                stride = first_stride if position == 0 else 1
                block = Block(kernel, expansion * inputs, outputs, stride)
                blocks.append(InvertedResidual(block, inputs, config.norm, EPS, same_padding=True))
                inputs = outputs
        self.blocks = nn.ModuleList(blocks)
        self.frozen_blocks = config.frozen_blocks
        if config.frozen_blocks:
            freeze(self.stem, *blocks[: config.frozen_blocks])

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """[N, C, H, W] normalised pixels -> four maps [N, channels[i], H / strides[i], W / strides[i]]."""
        features = []
        learning = torch.is_grad_enabled()
        with torch.set_grad_enabled(learning and self.frozen_blocks == 0):
            x = self.stem(pixels)
        for index, block in enumerate(self.blocks):
            with torch.set_grad_enabled(learning and index >= self.frozen_blocks):
                x = block(x)
            if index in TAPS:
                features.append(x)
        return features
