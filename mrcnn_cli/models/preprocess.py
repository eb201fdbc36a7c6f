"""From pictures to the numbers that a backbone was made for."""

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from mrcnn_cli.config import Config
from mrcnn_cli.errors import UserError
from mrcnn_cli.structures import ImageBatch


class PixelsConfig(Config):
    # Of ImageNet, in the order of `channels`; "auto": computed from the training pictures before the first step.
    mean: tuple[float, ...] | Literal["auto"] = (123.675, 116.28, 103.53)
    deviation: tuple[float, ...] | Literal["auto"] = (58.395, 57.12, 57.375)
    channels: Literal["rgb", "bgr"] = "rgb"  # Detectron's models take bgr
    padding: float = Field(0.0)  # value of the padding, after normalisation

    @model_validator(mode="after")
    def _fits(self) -> "PixelsConfig":
        if "auto" in (self.mean, self.deviation):
            if self.mean != self.deviation:
                raise ValueError('mean and deviation are computed together: write "auto" for both or for none')
        elif len(self.mean) != len(self.deviation) or not self.mean:
            raise ValueError("mean and deviation must have one value per channel each")
        elif min(map(float, self.deviation)) <= 0:
            raise ValueError("deviation must be positive")
        return self


class Preprocess(nn.Module):
    """(pixels - mean) / deviation in float32, and the padding set again afterwards."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, config: PixelsConfig):
        super().__init__()
        self.config = config
        if config.mean == "auto" or config.deviation == "auto":
            raise UserError('model.pixels.mean = "auto": no pictures to compute it from; give one value per channel')
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
