"""From pictures to the numbers that a backbone was made for."""

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from mrcnn_cli.config import Config
from mrcnn_cli.structures import ImageBatch


class PixelsConfig(Config):
    mean: tuple[float, ...] = (123.675, 116.28, 103.53)  # of ImageNet, in the order of `channels`
    deviation: tuple[float, ...] = (58.395, 57.12, 57.375)
    channels: Literal["rgb", "bgr"] = "rgb"  # Detectron's models take bgr
    padding: float = Field(0.0)  # value of the padding, after normalisation

    @model_validator(mode="after")
    def _fits(self) -> "PixelsConfig":
        if len(self.mean) != len(self.deviation):
            raise ValueError("mean and deviation must have one value per channel each")
        if min(self.deviation) <= 0:
            raise ValueError("deviation must be positive")
        return self


class Preprocess(nn.Module):
    """(pixels - mean) / deviation in float32, and the padding set again afterwards."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, config: PixelsConfig):
        super().__init__()
        self.config = config
        shape = (1, len(config.mean), 1, 1)
        self.register_buffer("mean", torch.tensor(config.mean).view(shape), persistent=False)
        self.register_buffer("deviation", torch.tensor(config.deviation).view(shape), persistent=False)

    def forward(self, images: ImageBatch) -> Tensor:
        """[N, C, H, W] float32, channels last."""
        pixels = images.pixels.flip(1) if self.config.channels == "bgr" else images.pixels
        pixels = ((pixels.float() - self.mean) / self.deviation).contiguous(memory_format=torch.channels_last)
        for image, (height, width) in zip(pixels, images.sizes, strict=True):
            image[:, height:] = self.config.padding
            image[:, :, width:] = self.config.padding
        return pixels
