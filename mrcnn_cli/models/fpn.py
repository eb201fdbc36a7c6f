"""Feature Pyramid Network: "Feature Pyramid Networks for Object Detection" (Lin et al., 2017)."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from mrcnn_cli.config import Config
from mrcnn_cli.models.convolution import ConvNorm, Norm


class FPNConfig(Config):
    channels: int = Field(256, ge=8)
    norm: Norm = "none"
    top: Literal["pool", "none"] = "pool"  # "pool": one coarser level for the RPN, the last one subsampled


class FPN(nn.Module):
    """Lateral 1x1 convolutions, a top-down sum with nearest upsampling, and a 3x3 convolution per level.

    Args:
        config: width, normalisation and the extra level.
        channels: of the backbone's maps, finest first.
        strides: of the backbone's maps.
    """

    def __init__(self, config: FPNConfig, channels: Sequence[int], strides: Sequence[int]):
        super().__init__()
        self.laterals = nn.ModuleList(ConvNorm(c, config.channels, 1, norm=config.norm) for c in channels)
        self.outputs = nn.ModuleList(ConvNorm(config.channels, config.channels, 3, norm=config.norm) for _ in channels)
        for conv in (*self.laterals, *self.outputs):
            nn.init.kaiming_uniform_(conv.weight, a=1)
        self.top = config.top
        self.channels = config.channels
        self.roi_strides = tuple(strides)  # the levels that RoIs are cut from
        self.strides = (*strides, strides[-1] * 2) if config.top == "pool" else tuple(strides)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Maps [N, channels[i], H_i, W_i], finest first -> maps [N, C, H_i, W_i] at `strides`."""
        merged = [lateral(feature) for lateral, feature in zip(self.laterals, features, strict=True)]
        for level in range(len(merged) - 2, -1, -1):
            fine = merged[level]
            merged[level] = fine + functional.interpolate(merged[level + 1], size=fine.shape[-2:], mode="nearest")
        pyramid = [output(feature) for output, feature in zip(self.outputs, merged, strict=True)]
        if self.top == "pool":
            pyramid.append(functional.max_pool2d(pyramid[-1], kernel_size=1, stride=2))
        return pyramid
